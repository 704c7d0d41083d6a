"""Adapters of every form on tiny pipelines of every family, exported, and loaded by other libraries.

The record of all of them fills the table in docs/exporting.md (`benchmarks/exports.py`); `tests/peers/test_exports.py`
repeats some.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lycoris
import lycoris.kohya
import peft
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from superlora_cli.models.families import FAMILIES
from tests import pipelines, reader
from tests.conftest import run_cli
from tests.makers import relative, write_adapter

VARIANTS: dict[str, tuple[str, ...]] = {
    "lora": ("adapter.method=lora",),
    "lora, convolutions": ("adapter.method=lora", "adapter.targets=[q,v,'*conv1','*.proj']"),
    "vera": ("adapter.method=vera",),
    "loha": ("adapter.method=loha",),
    "lokr": ("adapter.method=lokr", "adapter.split_dim=2", "adapter.rank=1"),
    "krona": ("adapter.method=krona", "adapter.split_dim=4"),
    "lorta": ("adapter.method=lorta",),
    "lokr, rank 4": ("adapter.method=lokr", "adapter.split_dim=4", "adapter.rank=4", "export --rank 4"),
}  # overrides of a recipe, and options of export
NO_RANK = {"vera", "krona"}
Deltas = dict[str, Tensor]
EXACT = 1e-5


def adapter_of(variant: str, family: str, folder: Path) -> Path:
    """An adapter with a scale other than 1, on a saved pipeline of a family."""
    saved = folder / family
    if not saved.exists():
        pipelines.saved(family, saved)
        (folder / f"{family}.yaml").write_text(
            f'task: text-to-image\nmodel: {{name: "diffusers:{saved}"}}\ndata: {{name: nowhere, image_size: 16}}\n'
            "adapter: {method: lora, rank: 2, targets: [q, v], alpha: 3, scaling: alpha}\n"
            "train: {steps: 1, batch_size: 1}\n"
        )
    overrides = [word for word in VARIANTS[variant] if word.startswith("adapter.")]
    return write_adapter(folder / "adapter.safetensors", str(folder / f"{family}.yaml"), *overrides)
