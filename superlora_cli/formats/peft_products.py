"""Folders for PEFT of adapters that multiply the base: IA³ and OFT, exact whatever makes the scales or rotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.adapter.delta import made
from superlora_cli.adapter.multiplied import MULTIPLY
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import UsageError
from superlora_cli.formats.format import Options
from superlora_cli.formats.lora import check_called, noted
from superlora_cli.formats.peft_lora import about_base, folder_files, put, target_modules
from superlora_cli.formats.whole import check_plain
from superlora_cli.opening.shapes_only import Stored

HINT = "--to timm or --to delta"


def write_ia3(adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
    """Write IA³'s scales; see `format.Format.write`. PEFT multiplies a bias too, so `rows` need layers without one."""
    inputs = MULTIPLY[_one_of(adapter, "rows", "columns")].scales_inputs
    own: dict[str, dict[str, Tensor]] = {}
    notes = check_called(adapter)
    for target, layer, x in _layers(adapter):
        if inputs:
            _whole(target)
            own[target.module] = {"ia3_l": 1 + x}
            continue
        if layer.bias is not None:
            raise UsageError("has a bias, which PEFT's IA³ multiplies too", where=target.name, hint=HINT)
        parts = own.setdefault(target.module, {"ia3_l": torch.ones(layer.out_features, 1)})
        parts["ia3_l"][target.start : target.stop] += x.mT
    names = target_modules(own, adapter.modules)
    settings = {"target_modules": names, "feedforward_modules": names if inputs else []}
    return put(adapter, out, folder_files("IA3", own, settings, {}, **about_base(adapter)), options) | noted(notes)


def write_oft(adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
    """Write OFT's rotations, the numbers above the diagonal of X − Xᵀ in each block; see `format.Format.write`."""
    _one_of(adapter, "rotation")
    if adapter.adapter.strength != 1:
        raise UsageError("a rotation times a number is none", where="--scale", hint=HINT)
    own, block = {}, adapter.stored.config.block
    upper, notes = torch.triu_indices(block, block, 1), check_called(adapter)
    for target, layer, x in _layers(adapter):
        _whole(target)
        if layer.in_features % block:
            what = f"blocks of {block} do not divide its {layer.in_features} inputs, which PEFT's OFT needs"
            raise UsageError(what, where=target.name, hint=HINT)
        square = x.unflatten(0, (-1, block))
        own[target.module] = {"oft_R.weight": (square - square.mT)[:, upper[0], upper[1]]}
    settings = {"r": 0, "oft_block_size": block, "use_cayley_neumann": False, "bias": "none", "module_dropout": 0.0,
                "target_modules": target_modules(own, adapter.modules)}  # fmt: skip
    return put(adapter, out, folder_files("OFT", own, settings, {}, **about_base(adapter)), options) | noted(notes)


def _one_of(adapter: Stored, *kinds: str) -> str:
    multiply = adapter.stored.config.multiply
    if multiply not in kinds:
        what = f"multiply is {multiply}, not {' or '.join(kinds)}"
        raise UsageError(what, where=str(adapter.path), hint="--to peft-lora, timm or delta")
    return multiply


def _whole(target: Target) -> None:
    if not target.whole:
        raise UsageError("PEFT multiplies the inputs of a whole layer, not of some rows", where=target.name, hint=HINT)


@torch.no_grad()
def _layers(adapter: Stored) -> list[tuple[Target, nn.Linear, Tensor]]:
    """Every target, its layer without weights, and X.

    Raises:
        UsageError: a layer is no plain linear one.
    """
    found = []
    numbers = made(adapter.adapter.plan, dict(adapter.adapter.factors.items()), adapter.adapter.not_trained())
    for target, x in zip(adapter.targets, numbers, strict=True):
        layer = adapter.modules[target.module]
        check_plain(target.module, layer)
        if not isinstance(layer, nn.Linear):
            raise UsageError("is not a linear layer", where=target.module, hint=HINT)
        found.append((target, layer, x * adapter.adapter.strength))
    return found
