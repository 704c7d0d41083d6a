"""Tiny random pipelines of diffusers' own classes, one of every family, with tokenizers of single letters."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WIDTH, LONGEST = 32, 77
FAMILIES = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux")


def clip_tokenizer() -> CLIPTokenizer:
    letters = [*string.ascii_lowercase, ","]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({piece: number for number, piece in enumerate(pieces)}, [], model_max_length=LONGEST)


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase, ","]
    return T5Tokenizer([(piece, -float(number)) for number, piece in enumerate(pieces)], extra_ids=0)


def clip(kind: type = CLIPTextModel) -> Any:
    words = clip_tokenizer()
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    return kind(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=WIDTH, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
            projection_dim=WIDTH, max_position_embeddings=LONGEST, **ends,
        )
    )  # fmt: skip


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(t5_tokenizer()), d_model=WIDTH, d_ff=37, d_kv=8, num_layers=2, num_heads=4)
    )


def vae(**more: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16, **more,
    )  # fmt: skip


def unet(**more: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **more,
    )  # fmt: skip


def stable_diffusion() -> Any:
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return diffusers.StableDiffusionPipeline(
        vae(), clip(), clip_tokenizer(), unet(cross_attention_dim=WIDTH), scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl() -> Any:
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    denoiser = unet(
        cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8, transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae(), clip(), clip(CLIPTextModelWithProjection), clip_tokenizer(), clip_tokenizer(), denoiser, scheduler,
        add_watermarker=False,
    )  # fmt: skip


def stable_diffusion_3() -> Any:
    denoiser = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=WIDTH * 2, caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(t5_tokenizer()), d_model=2 * WIDTH, d_ff=37, d_kv=8, num_layers=2, num_heads=4)
    )
    return diffusers.StableDiffusion3Pipeline(
        denoiser, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae(shift_factor=0.06),
        clip(CLIPTextModelWithProjection), clip_tokenizer(), clip(CLIPTextModelWithProjection), clip_tokenizer(),
        encoder, t5_tokenizer(),
    )  # fmt: skip


def flux() -> Any:
    denoiser = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.FluxPipeline(
        scheduler, vae(shift_factor=0.1), clip(), clip_tokenizer(), t5(), t5_tokenizer(), denoiser
    )


MAKERS = dict(zip(FAMILIES, (stable_diffusion, stable_diffusion_xl, stable_diffusion_3, flux), strict=True))


@cache
def made(family: str) -> Any:
    """The pipeline of a family; not to be changed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = MAKERS[family]()
    for part in found.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    found.set_progress_bar_config(disable=True)
    return found


def saved(family: str, folder: Path) -> Path:
    """That pipeline in a folder."""
    made(family).save_pretrained(folder)
    return folder


transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()
