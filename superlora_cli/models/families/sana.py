"""Sana: a flow over the latents of an autoencoder that shrinks images 32 times, with the tokens of Gemma."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from superlora_cli.models.families.family import OF_ANY_SIZE, Conditions, Family
from superlora_cli.models.families.naming import Naming

TOKENS = 300  # of Gemma


class Sana(Family):
    """`SanaPipeline`."""

    autoencodes = False
    call = OF_ANY_SIZE
    naming = Naming("transformer.", "sana", "sana")

    def scale(self, vae: Mapping[str, Any]) -> int:
        return int(2 ** (len(vae["encoder_block_out_channels"]) - 1))

    def multiple(self, denoiser: Any) -> int:
        """The transformer sees patches of latents."""
        return int(denoiser.config.patch_size)

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        found: Tensor = vae.encode(images).latent * vae.config.scaling_factor
        return found

    def dropped(self, pipeline: Any, size: tuple[int, int], guidance: float = 1.0) -> Conditions:
        """Without the instruction that the pipeline puts before a prompt, but not before a negative one."""
        return self.conditions(pipeline, [""], size, guidance, complex_human_instruction=None)

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        config = denoiser.config
        conditions = {
            "encoder_hidden_states": torch.empty(batch, TOKENS, config.caption_channels),
            "encoder_attention_mask": torch.empty(batch, TOKENS, dtype=torch.long),
        }
        return (batch, config.in_channels, size[1], size[0]), conditions
