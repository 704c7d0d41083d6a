"""Stable Diffusion 3 and 3.5: a flow; image and text in one attention, with the tokens of three text encoders."""

from __future__ import annotations

from typing import Any

import torch

from superlora_cli.models.families.family import Conditions, Family

TOKENS = 77 + 256  # of CLIP and of T5


class StableDiffusion3(Family):
    """`StableDiffusion3Pipeline`."""

    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def multiple(self, denoiser: Any) -> int:
        """The transformer sees patches of latents."""
        return int(denoiser.config.patch_size)

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        config = denoiser.config
        conditions = {
            "encoder_hidden_states": torch.empty(batch, TOKENS, config.joint_attention_dim),
            "pooled_projections": torch.empty(batch, config.pooled_projection_dim),
        }
        return (batch, config.in_channels, size[1], size[0]), conditions
