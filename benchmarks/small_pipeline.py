"""The shape and the tokenizer of the shipped pipeline `glyphs_text`: `python benchmarks/small_pipeline.py FOLDER`.

A `StableDiffusionPipeline` of 16×16 pixels with random weights. `superlora train recipes/pretrain_glyphs_text_vae.yaml`
gives its autoencoder weights, and `recipes/pretrain_glyphs_text.yaml` its denoiser and text encoder. The tokens are the
same every time, but not their order.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from superlora_cli.data.captioned_glyphs import COLOURS, NUMBERS, STYLES

LONGEST = 24  # tokens of a caption
OTHER_WORDS = ("a", "an", "on", "ground", "handwritten", "printed", "digit", "drawn", "picture", "of", "the", "in")


def tokenizer() -> CLIPTokenizer:
    """A word of the captions is one token; any other text falls apart into shorter ones, at last into its bytes."""
    letters = sorted(ByteLevel.alphabet())
    learned = CLIPTokenizer(vocab={letter: number for number, letter in enumerate(letters)}).backend_tokenizer
    words = [*NUMBERS, *COLOURS, *STYLES, *OTHER_WORDS]
    learner = BpeTrainer(vocab_size=10_000, min_frequency=1, show_progress=False, end_of_word_suffix="</w>",
                         initial_alphabet=letters)  # fmt: skip
    learned.train_from_iterator(words, learner)
    found = json.loads(learned.to_str())["model"]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [piece for piece in found["vocab"] if piece not in pieces]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in found["merges"]], model_max_length=LONGEST)


def new_pipeline() -> StableDiffusionPipeline:
    """The pipeline with random weights."""
    words = tokenizer()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=64,
    )
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        **ends,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text), words, unet, scheduler, None, None, requires_safety_checker=False
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.manual_seed(0)
    new_pipeline().save_pretrained(folder)
