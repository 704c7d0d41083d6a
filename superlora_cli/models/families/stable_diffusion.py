"""Stable Diffusion 1 and 2: a U-Net that attends to the tokens of one text encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superlora_cli.models.families.family import Conditions, Family
from superlora_cli.models.families.noise import Diffusion

TOKENS = 77  # of CLIP's text encoders


class StableDiffusion(Family):
    """`StableDiffusionPipeline`."""

    denoiser, noisy = "unet", "sample"
    noise = Diffusion

    def multiple(self, denoiser: Any) -> int:
        """As often as the U-Net halves its latents: an odd half is doubled to another size."""
        return int(2 ** (len(denoiser.config.block_out_channels) - 1))

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        plain: Tensor = vae.encode(images).latent_dist.mode()
        return plain * vae.config.scaling_factor

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        config = denoiser.config
        words = {"encoder_hidden_states": torch.empty(batch, TOKENS, config.cross_attention_dim)}
        return (batch, config.in_channels, size[1], size[0]), words
