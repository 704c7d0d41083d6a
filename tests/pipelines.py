"""Tiny random pipelines of diffusers' own classes, one of every family, with tokenizers of single letters."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WIDTH, LONGEST = 32, 77


def clip_tokenizer() -> CLIPTokenizer:
    letters = [*string.ascii_lowercase, ","]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({piece: number for number, piece in enumerate(pieces)}, [], model_max_length=LONGEST)


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase, ","]
    return T5Tokenizer([(piece, -float(number)) for number, piece in enumerate(pieces)], extra_ids=0)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Of bytes, with the marks of a chat."""
    ends = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = [*sorted(ByteLevel.alphabet()), *ends]
    found = Qwen2Tokenizer({piece: number for number, piece in enumerate(pieces)}, [], additional_special_tokens=ends)
    found.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    return found


def qwen3(layers: int, width: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(qwen_tokenizer()), hidden_size=width, intermediate_size=width, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip


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


def flux_2() -> Any:
    """Prompts are seen in three of Qwen3's layers, the 27th at last."""
    latents = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    latents.bn.running_mean.normal_()
    latents.bn.running_var.uniform_(0.5, 2)
    denoiser = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * 16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    encoder = Qwen3ForCausalLM(qwen3(layers=27, width=16))
    return diffusers.Flux2KleinPipeline(scheduler, latents, encoder, qwen_tokenizer(), denoiser)


def z_image() -> Any:
    denoiser = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    encoder = Qwen3Model(qwen3(layers=2, width=16))
    return diffusers.ZImagePipeline(scheduler, vae(shift_factor=0.1), encoder, qwen_tokenizer(), denoiser)


def qwen_image() -> Any:
    words = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": len(qwen_tokenizer()),
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }  # fmt: skip
    images = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=words, vision_config=images))
    latents = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[0.5, 1.0, 1.5, 2.0],
    )  # fmt: skip
    denoiser = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.QwenImagePipeline(scheduler, latents, encoder, qwen_tokenizer(), denoiser)


def sana() -> Any:
    kinds, scales = ("ResBlock",) * 5 + ("EfficientViTBlock",), ((),) * 5 + ((5,),)
    latents = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=kinds, decoder_block_types=kinds,
        encoder_block_out_channels=(8,) * 6, decoder_block_out_channels=(8,) * 6, encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6, encoder_qkv_multiscales=scales, decoder_qkv_multiscales=scales,
        downsample_block_type="conv", upsample_block_type="interpolate", scaling_factor=0.4,
    )  # fmt: skip
    denoiser = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=32, patch_size=1,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(qwen_tokenizer()), hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8,
            num_attention_heads=2, num_key_value_heads=1,
        )
    )  # fmt: skip
    return diffusers.SanaPipeline(qwen_tokenizer(), encoder, latents, denoiser, scheduler)


def pixart() -> Any:
    denoiser = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=16, sample_size=32, patch_size=2, caption_channels=WIDTH, use_additional_conditions=False,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return diffusers.PixArtSigmaPipeline(t5_tokenizer(), t5(), vae(), denoiser, scheduler)


MAKERS = {
    "StableDiffusion": stable_diffusion,
    "StableDiffusionXL": stable_diffusion_xl,
    "StableDiffusion3": stable_diffusion_3,
    "Flux": flux,
    "Flux2Klein": flux_2,
    "ZImage": z_image,
    "QwenImage": qwen_image,
    "Sana": sana,
    "PixArtSigma": pixart,
}
FAMILIES = tuple(MAKERS)
UNITS = {"Sana": 32}  # width and height are multiples of it; elsewhere of 8


def unit(family: str) -> int:
    """Side in pixels of a small image."""
    return UNITS.get(family, 16)


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
