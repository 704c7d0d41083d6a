"""Adapter files with a ΔW, without a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from superlora_cli.adapter import store
from superlora_cli.models.embedded import ASSETS
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import load_recipe

BASE = ASSETS / "glyphs_vit.safetensors"


def write_adapter(path: Path | str, recipe: str, *overrides: str, scale: float = 0.1, seed: int = 0) -> Path:
    """The adapter of a shipped recipe with factors of N(0, 1), and ΔW of about `scale` of its targets' norm."""
    loaded = load_recipe(recipe, overrides)
    assert loaded.adapter is not None
    built = build_for_training(loaded)
    assert built.adapter is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in built.adapter.factors.values():
            factor.copy_(torch.randn(factor.shape, generator=generator))
        base = sum(
            built.model.get_submodule(t.module)._parameters["weight"][t.start : t.stop].square().sum()  # type: ignore[index]
            for t in built.adapter.targets
        )
        now = sum(delta.square().sum() for delta in built.adapter.compute())
        last = {name.partition("_")[0]: factor for name, factor in built.adapter.factors.items()}
        for factor in last.values():  # ΔW is linear in one factor of every bucket
            factor.mul_(scale * (base / now) ** 0.5)
    head = {name: tensor + 0.01 for name, tensor in built.head.items()}
    sha256, dtype = built.base_digest
    store.StoredAdapter.of(
        built.adapter.config,
        built.adapter.targets,
        dict(built.adapter.factors.items()),
        patterns=loaded.adapter.targets,
        base=(loaded.model.name, sha256, dtype),
        recipe=loaded.to_dict(),
        head=head,
    ).save(Path(path), force=True)
    return Path(path)


def write_overflowing(path: Path | str, recipe: str) -> Path:
    """An adapter with finite factors whose ΔW is not finite."""
    stored = store.load(write_adapter(path, recipe))
    factors = {name: torch.full_like(factor, 1e30) for name, factor in stored.factors.items()}
    replace(stored, factors=factors).save(Path(path), force=True)
    return Path(path)


def write_base(path: str, dtype: torch.dtype) -> Path:
    """The embedded base stored in another dtype."""
    save_file({name: tensor.to(dtype) for name, tensor in load_file(BASE).items()}, path)
    return Path(path)


def deltas_of(path: Path | str) -> dict[str, Tensor]:
    """Target name → ΔW, of an adapter file."""
    from superlora_cli.opening.shapes_only import read_adapter

    read = read_adapter(Path(path))
    return {target.name: delta.detach() for target, delta in zip(read.targets, read.deltas(), strict=True)}


def relative(found: Any, wanted: Any) -> float:
    """‖found − wanted‖ / ‖wanted‖ over tensors by name."""
    assert found.keys() == wanted.keys()
    missed = sum((found[name] - wanted[name]).double().square().sum() for name in wanted)
    return float((missed / sum(tensor.double().square().sum() for tensor in wanted.values())) ** 0.5)
