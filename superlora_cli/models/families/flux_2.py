"""FLUX.2 [klein]: a flow over packed latents that its autoencoder normalises; positions belong to each image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superlora_cli.models.families.family import Conditions
from superlora_cli.models.families.naming import Naming
from superlora_cli.models.families.packed import Packed, packed

TOKENS = 512  # of Qwen3


class Flux2Klein(Packed):
    """`Flux2KleinPipeline`."""

    takes_negative = False
    naming = Naming("transformer.", "flux2_klein", "flux-2-klein")

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        plain = packed(vae.encode(images).latent_dist.mode())
        mean, variance = vae.bn.running_mean.to(plain), vae.bn.running_var.to(plain)
        return (plain - mean) / (variance + vae.config.batch_norm_eps).sqrt()

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        config, length = denoiser.config, size[0] * size[1] // 4
        conditions = {
            "encoder_hidden_states": torch.empty(batch, TOKENS, config.joint_attention_dim),
            "txt_ids": torch.empty(batch, TOKENS, len(config.axes_dims_rope), dtype=torch.long),
            "img_ids": torch.empty(batch, length, len(config.axes_dims_rope), dtype=torch.long),
            "guidance": None,
        }
        return (batch, length, config.in_channels), conditions
