"""FLUX.1: a flow over latents packed in squares of four, with the positions of all tokens, and guidance as an input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superlora_cli.models.families.family import Conditions, Family

TOKENS = 512  # of T5


class Flux(Family):
    """`FluxPipeline`."""

    encoders = ("text_encoder", "text_encoder_2")
    shared = ("img_ids", "txt_ids")
    guided = True

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        """Packed: (B, C, h, w) → (B, h/2 · w/2, 4·C)."""
        plain = super().latents(vae, images)
        squares = plain.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, h/2, 2, w/2, 2)
        return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def times(self, times: Tensor) -> Tensor:
        return times / 1000

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[1]

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        config, length = denoiser.config, size[0] * size[1] // 4
        conditions = {
            "encoder_hidden_states": torch.empty(batch, TOKENS, config.joint_attention_dim),
            "pooled_projections": torch.empty(batch, config.pooled_projection_dim),
            "txt_ids": torch.empty(TOKENS, len(config.axes_dims_rope)),
            "img_ids": torch.empty(length, len(config.axes_dims_rope)),
            **({"guidance": torch.empty(batch)} if config.guidance_embeds else {}),
        }
        return (batch, length, config.in_channels), conditions
