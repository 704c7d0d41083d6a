"""A folder for `peft.PeftModel.from_pretrained(base_model, folder)`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from superlora_cli.errors import UsageError
from superlora_cli.files import json_text, write_folder
from superlora_cli.formats.format import Options
from superlora_cli.formats.lora import as_loras
from superlora_cli.formats.whole import Lora
from superlora_cli.models.heads import classifier_tensors
from superlora_cli.models.language import LanguageBase
from superlora_cli.opening.base import open_base
from superlora_cli.opening.shapes_only import Stored
from superlora_cli.weights.small import safetensors_bytes

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
MAMBAS = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
NOT_OF_MAMBAS = ("out_proj", "conv1d")  # their kernels read the weights themselves
SAVED_ANYWAY = ("classifier", "score")  # of a classifier of texts


def write(adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
    """Write the folder; see `format.Format.write`.

    Raises:
        UsageError: PEFT refuses LoRAs of a target.
    """
    kind = getattr(getattr(adapter.base.model, "config", None), "model_type", None)
    for target in adapter.targets:
        if kind in MAMBAS and target.module.rpartition(".")[2] in NOT_OF_MAMBAS:
            hint = "an adapter of other targets, or superlora merge"
            raise UsageError("PEFT has no LoRAs of this layer in models like Mamba", where=target.module, hint=hint)
    found = as_loras(adapter, options)
    files = peft_files(found.made, errors=found.errors, **about_base(adapter))
    return put(adapter, out, files, options) | found.about(adapter)


def about_base(adapter: Stored) -> dict[str, Any]:
    """What a folder says of an adapter's base: the keywords `modules`, `base`, `head` and `task` of `folder_files`."""
    name = adapter.base.place if isinstance(adapter.base, LanguageBase) else adapter.recipe.model.name
    return {"modules": adapter.modules, "base": name, "head": _head(adapter), "task": adapter.base.peft_task}


def put(adapter: Stored, out: Path, files: Mapping[str, bytes], options: Options) -> dict[str, Any]:
    """Write a folder; its bytes, and the Python that loads it."""
    size = sum(map(len, files.values()))
    options.tell(size)
    write_folder(out, files, force=options.force)
    load = f"{adapter.loading}; peft.PeftModel.from_pretrained(model, {str(out)!r})"
    return {"bytes": size, "load": load}


def _head(adapter: Stored) -> dict[str, Tensor]:
    """What PEFT has to replace besides the targets: a trained head, or the selected rows of the pretrained one.

    Whole modules, so that the base's running statistics in a trained head are included.
    """
    trained, recipe = dict(adapter.stored.head), adapter.recipe
    if isinstance(adapter.base, LanguageBase):
        return trained
    whole = classifier_tensors(adapter.base.model).keys()
    if isinstance(recipe.model.head, str) and (not trained or trained.keys() == whole):
        return trained
    model = open_base(recipe, adapter.stored).model
    return {name: tensor.detach() for name, tensor in classifier_tensors(model).items()} | trained


def peft_files(
    loras: Mapping[str, Lora],
    *,
    modules: Iterable[str],
    base: str,
    head: Mapping[str, Tensor],
    errors: Mapping[str, float],
    task: str | None = None,
) -> dict[str, bytes]:
    """The folder's files by name.

    Args:
        loras: module name → its LoRA.
        errors: module name → relative error of its update, stored in the header as `superlora.errors`.
        modules, base, head, task: as in `folder_files`; it raises the same.
    """
    tensors = {name: {"lora_A.weight": lora.a, "lora_B.weight": lora.b} for name, lora in loras.items()}
    settings = {"bias": "none", "lora_dropout": 0.0, **lora_settings(loras, modules)}
    told = {"superlora.errors": json.dumps(dict(errors), sort_keys=True)}
    return folder_files("LORA", tensors, settings, told, modules=modules, base=base, head=head, task=task)


def folder_files(
    kind: str,
    own: Mapping[str, Mapping[str, Tensor]],
    settings: Mapping[str, Any],
    told: Mapping[str, str],
    *,
    modules: Iterable[str],
    base: str,
    head: Mapping[str, Tensor],
    task: str | None = None,
) -> dict[str, bytes]:
    """The files of a folder of any kind, by name.

    Args:
        kind: PEFT's name of the kind of tuner.
        own: module name → its tensors, by what follows the module's name.
        settings: further entries of the configuration.
        told: further entries of the header of the tensors.
        modules: names of all modules of the base.
        base: name of the base model.
        head: trained tensors outside the adapter, by their names in the model: PEFT's `modules_to_save`.
        task: PEFT's name of what the model does.

    Raises:
        UsageError: PEFT would mistake another module for a part of the head because of its name.
    """
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in head.items()}
    tensors |= {f"{PREFIX}{name}.{part}": t for name, parts in own.items() for part, t in parts.items()}
    saved = sorted({_saved(name, task) for name in head})
    for name in own:
        if any(re.match(rf"(^|.*\.){re.escape(part)}($|\..*)", name) for part in saved):
            hint = "--to timm or --to delta"
            raise UsageError(f"PEFT would mistake it for the head ({', '.join(saved)})", where=name, hint=hint)
    for name in modules:
        if name not in saved and name.endswith(tuple(saved)):  # PEFT matches suffixes, even within a word
            hint = "--to timm or --to delta"
            raise UsageError(f"PEFT would mistake it for the head ({', '.join(saved)})", where=name, hint=hint)
    config = {
        "peft_type": kind,
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": saved or None,
        **settings,
    }
    content = safetensors_bytes(tensors, {"format": "pt", **told})
    return {CONFIG_FILE: json_text(config).encode(), WEIGHTS_FILE: content}


def _saved(name: str, task: str | None) -> str:
    """The module that PEFT saves for a parameter: its own or, of texts' classifiers, one that PEFT saves anyway.

    >>> _saved("classifier.dense.weight", "SEQ_CLS"), _saved("bert.pooler.dense.weight", "SEQ_CLS")
    ('classifier', 'bert.pooler.dense')
    """
    first = name.partition(".")[0]
    return first if task == "SEQ_CLS" and first in SAVED_ANYWAY else name.rpartition(".")[0]


def lora_settings(loras: Mapping[str, Lora], modules: Iterable[str], *, start: str = "^") -> dict[str, Any]:
    """Targets and ranks under the names of PEFT's `LoraConfig`; alpha equals the rank everywhere, so that ΔW = B A.

    Modules whose rank is not the most frequent one are in `rank_pattern`, whose keys are regular expressions; `^` and
    escaping make each match one module only, without `start` also where its name has a prefix.
    """
    rank = Counter(lora.rank for lora in loras.values()).most_common(1)[0][0]
    ranks = {f"{start}{re.escape(name)}": lora.rank for name, lora in loras.items() if lora.rank != rank}
    return {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": target_modules(loras, modules),
    }


def target_modules(own: Collection[str], modules: Iterable[str]) -> str | list[str]:
    """The adapted modules as PEFT's `target_modules`.

    In a list PEFT matches suffixes of module names; if that would adapt more of the `modules`, it is a regular
    expression instead.
    """
    ambiguous = any(name not in own and name.endswith(tuple(f".{one}" for one in own)) for name in modules)
    return "|".join(map(re.escape, sorted(own))) if ambiguous else sorted(own)
