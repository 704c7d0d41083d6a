"""Folders of small images, and features made of random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from superlora_cli.data.glyphs import render_glyphs
from superlora_cli.generation.features import Features

Folder = Callable[..., Path]


def save(folder: Path, images: Tensor, labels: Tensor) -> Path:
    """Images as `superlora generate` leaves them: (n, 3, H, W) uint8."""
    folder.mkdir()
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:05d}_{label}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """`folder("made", 40, size=16, seed=0)`: printed digits."""

    def make(name: str, count: int, *, size: int = 16, seed: int = 0) -> Path:
        return save(tmp_path / name, *render_glyphs("test", count, size, seed=seed))

    return make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 printed digits; read only."""
    return save(tmp_path_factory.mktemp("images") / "made", *render_glyphs("test", 60))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 80 other printed digits; read only."""
    return save(tmp_path_factory.mktemp("images") / "other", *render_glyphs("validation", 80))


def random_features(count: int, seed: int, shift: float = 0.0) -> Features:
    """Features of a normal distribution with correlated components: 10 logits, 12 pooled."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, 12, generator=torch.Generator().manual_seed(99))
    pooled = torch.randn(count, 12, generator=generator) @ mixing + shift
    return Features(3 * torch.randn(count, 10, generator=generator), pooled, f"{count} {seed} {shift}")
