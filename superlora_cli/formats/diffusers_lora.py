"""A file for diffusers: `load_lora_weights` of a pipeline, or `load_lora_adapter(file, prefix="unet")` of a U-Net."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from superlora_cli.errors import UsageError
from superlora_cli.formats.format import Options
from superlora_cli.formats.lora import as_loras
from superlora_cli.formats.peft_lora import lora_settings
from superlora_cli.formats.whole import Lora
from superlora_cli.models.pipelines import PipelineBase
from superlora_cli.opening.shapes_only import Stored
from superlora_cli.weights.small import safetensors_bytes

PREFIX = "unet"


def write(adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
    """Write the file; see `format.Format.write`.

    Raises:
        UsageError: the base is not from diffusers.
    """
    base = adapter.base
    if adapter.recipe.model.name != "diffusers" and not isinstance(base, PipelineBase):
        message = f"{adapter.recipe.model.name} is not a diffusers model"
        raise UsageError(message, where="--to", hint="--to peft-lora works for any torch module")
    prefix, load = PREFIX, f"model.load_lora_adapter({str(out)!r}, prefix={PREFIX!r})"
    if isinstance(base, PipelineBase):
        prefix, load = base.family.denoiser, f"pipeline.load_lora_weights({str(out)!r})"
    found = as_loras(adapter, options)
    content = diffusers_file(found.made, modules=adapter.modules, errors=found.errors, prefix=prefix)
    options.put(out, content)
    return {"bytes": len(content), **found.about(adapter), "load": load}


def diffusers_file(
    loras: Mapping[str, Lora], *, modules: Iterable[str], errors: Mapping[str, float], prefix: str = PREFIX
) -> bytes:
    """The bytes of the file: `unet.<module>.lora_A.weight` and `unet.<module>.lora_B.weight`.

    Its header has targets, ranks and alphas, as in diffusers' own files (`lora_adapter_metadata`): what readers infer
    about alphas from tensors of several ranks has differed between versions.

    Args:
        loras: module name → its LoRA.
        modules: names of all modules of the base.
        errors: module name → relative error of its update, stored in the header as `superlora.errors`.
        prefix: the component of the pipeline.
    """
    tensors = {}
    for name, lora in loras.items():
        tensors[f"{prefix}.{name}.lora_A.weight"] = lora.a
        tensors[f"{prefix}.{name}.lora_B.weight"] = lora.b
    settings = {f"{prefix}.{key}": value for key, value in lora_settings(loras, modules).items()}
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(settings, sort_keys=True),
        "superlora.errors": json.dumps(dict(errors), sort_keys=True),
    }
    return safetensors_bytes(tensors, metadata)
