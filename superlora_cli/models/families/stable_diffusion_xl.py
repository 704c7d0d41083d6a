"""Stable Diffusion XL: the tokens of two text encoders, a pooled text, and the size of the picture as numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.models.families.family import Conditions
from superlora_cli.models.families.naming import spelt
from superlora_cli.models.families.stable_diffusion import StableDiffusion, UNetNaming

NUMBERS = 6  # original size, corner, and target size


class XLNaming(UNetNaming):
    """Trainers write the names of the original checkpoint."""

    def version(self, denoiser: Any) -> tuple[str, str]:
        return self.program, self.architecture

    def keys(self, denoiser: nn.Module) -> dict[str, str]:
        return {rows.module: spelt(self.prefix, name) for name, (rows,) in self.originals(denoiser).items()}


class StableDiffusionXL(StableDiffusion):
    """`StableDiffusionXLPipeline`."""

    encoders = ("text_encoder", "text_encoder_2")
    naming = XLNaming(
        "lora_unet_", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base",
        encoders={"text_encoder": ("lora_te1_",), "text_encoder_2": ("lora_te2_",)},
    )  # fmt: skip

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        plain: Tensor = vae.encode(images).latent_dist.mode()
        mean, spread = vae.config.get("latents_mean"), vae.config.get("latents_std")
        if mean is None or spread is None:
            return plain * vae.config.scaling_factor
        middle, width = (torch.tensor(numbers).view(1, -1, 1, 1).to(plain) for numbers in (mean, spread))
        return (plain - middle) * vae.config.scaling_factor / width

    def dropped(self, pipeline: Any, size: tuple[int, int], guidance: float = 1.0) -> Conditions:
        """Zeros in place of the texts, if the pipeline says so."""
        found = super().dropped(pipeline, size, guidance)
        if not pipeline.config.force_zeros_for_empty_prompt:
            return found
        beside = found["added_cond_kwargs"]
        pooled = torch.zeros_like(beside["text_embeds"])
        words = torch.zeros_like(found["encoder_hidden_states"])
        return {**found, "encoder_hidden_states": words, "added_cond_kwargs": {**beside, "text_embeds": pooled}}

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        shape, words = super().example(denoiser, size, batch)
        config = denoiser.config
        pooled = config.projection_class_embeddings_input_dim - NUMBERS * config.addition_time_embed_dim
        beside = {"text_embeds": torch.empty(batch, pooled), "time_ids": torch.empty(batch, NUMBERS)}
        return shape, {**words, "added_cond_kwargs": beside}
