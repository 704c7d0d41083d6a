"""Stable Diffusion XL: the tokens of two text encoders, a pooled text, and the size of the picture as numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superlora_cli.models.families.family import Conditions
from superlora_cli.models.families.stable_diffusion import StableDiffusion

NUMBERS = 6  # original size, corner, and target size


class StableDiffusionXL(StableDiffusion):
    """`StableDiffusionXLPipeline`."""

    encoders = ("text_encoder", "text_encoder_2")

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        plain: Tensor = vae.encode(images).latent_dist.mode()
        mean, spread = vae.config.get("latents_mean"), vae.config.get("latents_std")
        if mean is None or spread is None:
            return plain * vae.config.scaling_factor
        middle, width = (torch.tensor(numbers).view(1, -1, 1, 1).to(plain) for numbers in (mean, spread))
        return (plain - middle) * vae.config.scaling_factor / width

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        shape, words = super().example(denoiser, size, batch)
        config = denoiser.config
        pooled = config.projection_class_embeddings_input_dim - NUMBERS * config.addition_time_embed_dim
        beside = {"text_embeds": torch.empty(batch, pooled), "time_ids": torch.empty(batch, NUMBERS)}
        return shape, {**words, "added_cond_kwargs": beside}
