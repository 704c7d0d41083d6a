"""Latents packed in squares of four: a sequence of tokens, as FLUX and Qwen-Image see images."""

from __future__ import annotations

from torch import Tensor

from superlora_cli.models.families.family import Family


class Packed(Family):
    """A family whose denoiser sees packed latents, and shares of the way to noise as its times."""

    def times(self, times: Tensor) -> Tensor:
        return times / 1000

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[1]


def packed(latents: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h/2 · w/2, 4·C)."""
    squares = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, h/2, 2, w/2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
