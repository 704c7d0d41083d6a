"""Noise and times of an evaluation, always the same, so that losses on the same data can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 10  # draws per image
GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 cover [0, 1) evenly, however many there are


def draws_per_image(images: int, least: int) -> int:
    """How many draws an image of a split gets, for at least `least` on the whole split if `MOST` allow it.

    >>> [draws_per_image(images, 1000) for images in (20, 400, 5000)]
    [10, 3, 1]
    """
    return min(MOST, -(-least // max(1, images)))


def drawn(keys: Sequence[int], like: Tensor) -> tuple[list[float], Tensor]:
    """Times in [0, 1), and noise of the shape of `like`, (B, …), on the CPU; each depends only on its image's key."""
    noise = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(key)) for key in keys]
    return [(key + 0.5) * GOLDEN % 1 for key in keys], torch.stack(noise)
