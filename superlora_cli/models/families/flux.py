"""FLUX.1: a flow over latents packed in squares of four, with the positions of all tokens, and guidance as an input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superlora_cli.models.families.family import Conditions
from superlora_cli.models.families.naming import Naming
from superlora_cli.models.families.packed import Packed, packed

TOKENS = 512  # of T5
NAMES = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "double_blocks.*.img_mod.lin": "transformer_blocks.*.norm1.linear",
    "double_blocks.*.txt_mod.lin": "transformer_blocks.*.norm1_context.linear",
    "double_blocks.*.img_attn.qkv": "transformer_blocks.*.attn.to_{q,k,v}",
    "double_blocks.*.txt_attn.qkv": "transformer_blocks.*.attn.add_{q,k,v}_proj",
    "double_blocks.*.img_attn.proj": "transformer_blocks.*.attn.to_out.0",
    "double_blocks.*.txt_attn.proj": "transformer_blocks.*.attn.to_add_out",
    "double_blocks.*.img_mlp.0": "transformer_blocks.*.ff.net.0.proj",
    "double_blocks.*.img_mlp.2": "transformer_blocks.*.ff.net.2",
    "double_blocks.*.txt_mlp.0": "transformer_blocks.*.ff_context.net.0.proj",
    "double_blocks.*.txt_mlp.2": "transformer_blocks.*.ff_context.net.2",
    "single_blocks.*.modulation.lin": "single_transformer_blocks.*.norm.linear",
    "single_blocks.*.linear1": "single_transformer_blocks.*.{attn.to_q,attn.to_k,attn.to_v,proj_mlp}",
    "single_blocks.*.linear2": "single_transformer_blocks.*.proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear{[1],[0]}",
    "final_layer.linear": "proj_out",
}
ENCODERS = {"text_encoder": ("text_encoder.", "lora_te1_"), "text_encoder_2": ("lora_te3_", "lora_te2_")}


class Flux(Packed):
    """`FluxPipeline`."""

    encoders = ("text_encoder", "text_encoder_2")
    shared = ("img_ids", "txt_ids")
    guided = True
    naming = Naming("transformer.", "flux1", "flux-1-dev", NAMES, ENCODERS)

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        return packed(super().latents(vae, images))

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
