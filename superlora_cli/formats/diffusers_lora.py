"""A file for diffusers: `load_lora_weights` of a pipeline, or `load_lora_adapter(file, prefix="unet")` of a U-Net."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from superlora_cli.errors import UsageError
from superlora_cli.formats.format import Options
from superlora_cli.formats.lora import as_loras
from superlora_cli.formats.peft_lora import lora_settings
from superlora_cli.formats.whole import Lora
from superlora_cli.models.families.naming import factors, is_text
from superlora_cli.models.pipelines import PipelineBase
from superlora_cli.opening.shapes_only import Stored
from superlora_cli.weights.small import safetensors_bytes

PREFIX = "unet"
CLIP = "text_model."  # which names of modules have or, in version 5 of transformers, have not


def write(adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
    """Write the file; see `format.Format.write`.

    Raises:
        UsageError: the base is not from diffusers, or a pipeline that loads no LoRA.
    """
    base = adapter.base
    if adapter.recipe.model.name != "diffusers" and not isinstance(base, PipelineBase):
        message = f"{adapter.recipe.model.name} is not a diffusers model"
        raise UsageError(message, where="--to", hint="--to peft-lora works for any torch module")
    load = f"model.load_lora_adapter({str(out)!r}, prefix={PREFIX!r})"
    if isinstance(base, PipelineBase):
        load = f"pipeline.load_lora_weights({str(out)!r})"
        if base.component not in base.loras:
            raise UsageError(f"a {base.kind} loads no LoRA", where="--to", hint="--to kohya or peft-lora")
    found = as_loras(adapter, options)
    parts: dict[str, dict[str, Lora]] = {}
    for module, lora in found.made.items():
        part, name = base.place(module) if isinstance(base, PipelineBase) else (PREFIX, module)
        parts.setdefault(part, {})[name] = lora
    content = diffusers_file(parts, modules=adapter.modules, errors=found.errors)
    options.put(out, content)
    return {"bytes": len(content), **found.about(adapter), "load": load}


def diffusers_file(
    parts: Mapping[str, Mapping[str, Lora]], *, modules: Iterable[str], errors: Mapping[str, float]
) -> bytes:
    """The bytes of the file: `unet.<module>.lora_A.weight` and `unet.<module>.lora_B.weight`, of text
    encoders `text_encoder.<module>.lora_linear_layer.down.weight` and `up`, which diffusers reads whatever the modules.

    Its header has targets, ranks and alphas, as in diffusers' own files (`lora_adapter_metadata`): what readers infer
    about alphas from tensors of several ranks has differed between versions.

    Args:
        parts: component of the pipeline → module name → its LoRA.
        modules: names of all modules of the base.
        errors: module name → relative error of its update, stored in the header as `superlora.errors`.
    """
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for part, loras in parts.items():
        for name, lora in loras.items():
            key = f"{part}.{name}"
            tensors |= {f"{key}.{own}": tensor for own, tensor in zip(factors(key), (lora.a, lora.b), strict=True)}
        if is_text(part):
            told = lora_settings({name.removeprefix(CLIP): lora for name, lora in loras.items()}, (), start="")
        else:
            told = lora_settings(loras, modules)
        settings |= {f"{part}.{key}": value for key, value in told.items()}
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(settings, sort_keys=True),
        "superlora.errors": json.dumps(dict(errors), sort_keys=True),
    }
    return safetensors_bytes(tensors, metadata)
