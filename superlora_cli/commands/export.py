"""Write what an adapter file changes in the form of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superlora_cli.adapter.lowrank import approximate, check_limits, whole_error
from superlora_cli.commands.merge import merge
from superlora_cli.errors import UsageError, did_you_mean
from superlora_cli.files import check_output, write_atomic, write_folder
from superlora_cli.formats.delta import delta_file
from superlora_cli.formats.diffusers_lora import PREFIX, diffusers_file
from superlora_cli.formats.peft_lora import peft_files
from superlora_cli.formats.whole import by_module, loras
from superlora_cli.models.base import build
from superlora_cli.models.heads import classifier_tensors
from superlora_cli.opening.build import classes_of
from superlora_cli.opening.results import resolve_result
from superlora_cli.opening.shapes_only import Stored, check_update, read_adapter

FORMATS = ("timm", "peft-lora", "diffusers-lora", "delta")


def export(
    path: Path, out: Path, *, to: str, rank: int | None = None, energy: float | None = None, force: bool = False
) -> dict[str, Any]:
    """Write a run's or file's adapter as `to`.

    Args:
        to: one of `FORMATS`: a merged file for timm, a folder for PEFT, a file for diffusers, or ΔW itself.
        rank, energy: limits of the two LoRA formats, see `adapter.lowrank.approximate`.
        force: overwrite `out`.

    Returns:
        output, to and load; bytes but for timm; for the LoRA formats also adapter_bytes, weights (name, rank, error of
        each) and error (of all).

    Raises:
        UsageError: an unknown format, an output that exists, limits where there is nothing to limit, a base that the
            other library does not know, an adapter that is not a ΔW and a head. RunError: ΔW is not finite.
    """
    if to not in FORMATS:
        hint = did_you_mean(to, FORMATS) or "one of " + ", ".join(FORMATS)
        raise UsageError(f"unknown format '{to}'", where="--to", hint=hint)
    check_limits(rank, energy)
    if not to.endswith("-lora"):
        for option, value in (("--rank", rank), ("--energy", energy)):
            if value is not None:
                raise UsageError(f"{to} holds the update whole", where=option, hint="--to peft-lora")
    path = resolve_result(path)
    if to == "timm":
        return {"to": to, **merge(path, out, force=force)}
    check_output(out, force=force)
    if out.exists() and out.is_dir() != (to == "peft-lora"):
        kind = "a folder" if to == "peft-lora" else "a file"
        raise UsageError(f"{to} is {kind}", where=str(out), hint="choose another --out")
    adapter = read_adapter(path)
    check_update(adapter, hint="--to timm has all of it")
    if to.endswith("-lora"):
        return _export_lora(adapter, out, to, rank, energy, force)
    write_atomic(out, delta_file(adapter.targets, adapter.deltas(), adapter.modules, adapter.stored.base), force=force)
    load = f"delta = safetensors.torch.load_file({str(out)!r})"
    return {"to": to, "output": str(out), "bytes": out.stat().st_size, "load": load}


def _export_lora(
    adapter: Stored, out: Path, to: str, rank: int | None, energy: float | None, force: bool
) -> dict[str, Any]:
    if to == "diffusers-lora" and adapter.recipe.model.name != "diffusers":
        message = f"{adapter.recipe.model.name} is no model of diffusers"
        raise UsageError(message, where="--to", hint="--to peft-lora adapts any torch module")
    found = [approximate(update, rank=rank, energy=energy) for update in adapter.updates()]
    made = loras(adapter.targets, found, adapter.modules)
    _check_called(adapter)
    errors = {
        name: whole_error((found[index].norm, found[index].error) for index in indices)
        for name, indices in by_module(adapter.targets).items()
    }
    if to == "peft-lora":
        name = adapter.recipe.model.name
        files = peft_files(made, modules=adapter.modules, base=name, head=_head(adapter), errors=errors)
        write_folder(out, files, force=force)
        size = sum(map(len, files.values()))
        load = f"{adapter.loading}; peft.PeftModel.from_pretrained(model, {str(out)!r})"
    else:
        content = diffusers_file(made, modules=adapter.modules, errors=errors)
        write_atomic(out, content, force=force)
        size, load = len(content), f"model.load_lora_adapter({str(out)!r}, prefix={PREFIX!r})"
    return {
        "to": to,
        "output": str(out),
        "bytes": size,
        "adapter_bytes": adapter.path.stat().st_size,
        "weights": [{"name": name, "rank": made[name].rank, "error": error} for name, error in errors.items()],
        "error": whole_error((one.norm, one.error) for one in found),
        "load": load,
    }


def _head(adapter: Stored) -> dict[str, Tensor]:
    """What PEFT has to replace beside the targets: a trained head, or the chosen rows of the pretrained one.

    Whole modules, so that running statistics in a trained head, which are the base's, go with it.
    """
    trained, recipe = dict(adapter.stored.head), adapter.recipe
    whole = classifier_tensors(adapter.base.model).keys()
    if isinstance(recipe.model.head, str) and (not trained or trained.keys() == whole):
        return trained
    classes, image_size = classes_of(adapter.stored, recipe), recipe.data.image_size
    model = build(recipe.model, classes=classes, image_size=image_size).model
    return {name: tensor.detach() for name, tensor in classifier_tensors(model).items()} | trained


@torch.no_grad()
def _check_called(adapter: Stored) -> None:
    """Run the base on shapes alone, to see that each adapted layer is called: LoRA sits beside a layer's own call.

    Raises:
        UsageError: a model reads a layer's weight itself, as timm's BEiT does, and would never meet its LoRA.
    """
    called: set[str] = set()
    names = by_module(adapter.targets)
    hooks = [
        adapter.modules[name].register_forward_pre_hook(lambda module, inputs, name=name: called.add(name))
        for name in names
    ]
    size = adapter.base.image_size
    images, numbers = torch.empty(1, 3, size, size, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    try:
        adapter.base.model.eval()(*([images] if adapter.base.task == "classification" else [images, numbers, numbers]))
    except Exception:  # whatever a model cannot do on shapes alone: then it is not known
        return
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if name not in called:
            message = "the model reads its weight without calling the layer, so that LoRA beside it has no effect"
            raise UsageError(message, where=name, hint="--to timm or --to delta")
