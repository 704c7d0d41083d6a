"""Stable Diffusion 3 and 3.5: a flow; image and text in one attention, with the tokens of three text encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from superlora_cli.models.families.family import Conditions, Family
from superlora_cli.models.families.naming import Naming, Rows, halves

TOKENS = 77 + 256  # of CLIP and of T5
NAMES = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "joint_blocks.*.x_block.adaLN_modulation.1": "transformer_blocks.*.norm1.linear",
    "joint_blocks.*.context_block.adaLN_modulation.1": "transformer_blocks.*.norm1_context.linear",
    "joint_blocks.*.x_block.attn.qkv": "transformer_blocks.*.attn.to_{q,k,v}",
    "joint_blocks.*.x_block.attn2.qkv": "transformer_blocks.*.attn2.to_{q,k,v}",
    "joint_blocks.*.context_block.attn.qkv": "transformer_blocks.*.attn.add_{q,k,v}_proj",
    "joint_blocks.*.x_block.attn.proj": "transformer_blocks.*.attn.to_out.0",
    "joint_blocks.*.x_block.attn2.proj": "transformer_blocks.*.attn2.to_out.0",
    "joint_blocks.*.context_block.attn.proj": "transformer_blocks.*.attn.to_add_out",
    "joint_blocks.*.x_block.mlp.fc1": "transformer_blocks.*.ff.net.0.proj",
    "joint_blocks.*.x_block.mlp.fc2": "transformer_blocks.*.ff.net.2",
    "joint_blocks.*.context_block.mlp.fc1": "transformer_blocks.*.ff_context.net.0.proj",
    "joint_blocks.*.context_block.mlp.fc2": "transformer_blocks.*.ff_context.net.2",
    "final_layer.adaLN_modulation.1": "norm_out.linear{[1],[0]}",
    "final_layer.linear": "proj_out",
}
ENCODERS = {
    "text_encoder": ("text_encoder.", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
    "text_encoder_3": ("lora_te3_",),
}


class SD3Naming(Naming):
    """In the last block, the text's modulation has no more than a shift and a scale, in the order of the last layer."""

    def originals(self, denoiser: nn.Module) -> dict[str, list[Rows]]:
        found = super().originals(denoiser)
        last = f"joint_blocks.{len(denoiser.transformer_blocks) - 1}.context_block.adaLN_modulation.1"  # type: ignore[arg-type]
        return {**found, last: [*reversed(halves(found[last][0]))]}


class StableDiffusion3(Family):
    """`StableDiffusion3Pipeline`."""

    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    naming = SD3Naming("transformer.", "sd3", "stable-diffusion-3", NAMES, ENCODERS)

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
