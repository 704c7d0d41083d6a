"""Train the shipped pipeline `glyphs_text`: `python benchmarks/captioned_pipeline.py OUT [--steps N]`.

A `StableDiffusionPipeline` of 16×16 pixels from scratch, on printed digits with captions (`data/captioned_glyphs.py`):
first the autoencoder, then the denoiser together with the text encoder. It continues where it was killed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from superlora_cli.data.captioned_glyphs import COLOURS, NUMBERS, STYLES, render_captioned
from superlora_cli.files import write_atomic

IMAGES, BATCH, LONGEST, DROPPED = 60_000, 32, 24, 0.1
SAVE_EVERY = 500
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


class Stage:
    """One of the two trainings: tensors by name, an optimizer, a moving average, and where it was killed."""

    def __init__(self, file: Path, modules: dict[str, torch.nn.Module], steps: int, lr: float) -> None:
        self.file, self.steps, self.step = file, steps, 0
        self.modules = torch.nn.ModuleDict(modules).train()
        self.optimizer = torch.optim.AdamW(self.modules.parameters(), lr, weight_decay=1e-4)
        self.average = {name: value.clone() for name, value in self.modules.state_dict().items()}
        if file.exists():
            state = torch.load(file, weights_only=True)
            self.step, self.average = state["step"], state["average"]
            self.modules.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
        schedule = torch.optim.lr_scheduler.OneCycleLR
        self.schedule = schedule(self.optimizer, lr, steps, pct_start=0.05, last_epoch=self.step - 1)

    def run(self, loss_of, decay: float = 0.999) -> None:
        started, total = time.monotonic(), 0.0
        while self.step < self.steps:
            torch.manual_seed(self.step)
            loss = loss_of()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            self.step, total = self.step + 1, total + loss.item()
            with torch.no_grad():
                for name, value in self.modules.state_dict().items():
                    if value.is_floating_point():
                        self.average[name].lerp_(value, 1 - min(decay, self.step / (self.step + 10)))
            if self.step % 100 == 0:
                print(f"{self.file.stem} {self.step} {total / 100:.4f} {time.monotonic() - started:.0f} s", flush=True)
                total = 0.0
            if self.step % SAVE_EVERY == 0 or self.step == self.steps:
                state = {
                    "step": self.step,
                    "average": self.average,
                    "weights": self.modules.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                }
                held = self.file.with_suffix(".tmp")
                torch.save(state, held)
                held.replace(self.file)
        self.modules.load_state_dict(self.average)
        self.modules.eval()


def scaled(images: Tensor) -> Tensor:
    """uint8 → [−1, 1]."""
    return images.float() / 127.5 - 1


def train_vae(pipeline: StableDiffusionPipeline, images: Tensor, out: Path, steps: int) -> None:
    def loss() -> Tensor:
        batch = scaled(images[torch.randint(len(images), (BATCH,))])
        spread = pipeline.vae.encode(batch).latent_dist
        seen = pipeline.vae.decode(spread.sample()).sample
        return (
            functional.mse_loss(seen, batch) + 0.1 * functional.l1_loss(seen, batch) + 1e-4 * spread.kl().mean() / 256
        )

    Stage(out / "vae.pt", {"vae": pipeline.vae}, steps, 2e-3).run(loss)


@torch.no_grad()
def latents_of(pipeline: StableDiffusionPipeline, images: Tensor) -> Tensor:
    """The mean latents, not scaled."""
    parts = [pipeline.vae.encode(scaled(part)).latent_dist.mean for part in images.split(512)]
    return torch.cat(parts)


def train_denoiser(
    pipeline: StableDiffusionPipeline, latents: Tensor, captions: list[str], out: Path, steps: int
) -> None:
    padded = {"padding": "max_length", "max_length": LONGEST, "truncation": True, "return_tensors": "pt"}
    ids = pipeline.tokenizer(captions, **padded).input_ids
    empty = pipeline.tokenizer([""], **padded).input_ids
    total = pipeline.scheduler.config.num_train_timesteps

    def loss() -> Tensor:
        chosen = torch.randint(len(latents), (BATCH,))
        times, noise = torch.randint(total, (BATCH,)), torch.randn(BATCH, *latents.shape[1:])
        read = torch.where(torch.rand(BATCH, 1) < DROPPED, empty, ids[chosen])
        noisy = pipeline.scheduler.add_noise(latents[chosen], noise, times)
        words = pipeline.text_encoder(read)[0]
        return functional.mse_loss(pipeline.unet(noisy, times, words).sample, noise)

    modules = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    Stage(out / "denoiser.pt", modules, steps, 1.5e-3).run(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=5500, help="of the denoiser")
    parser.add_argument("--vae-steps", type=int, default=3000)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pipeline = new_pipeline()
    images, captions = render_captioned("train", IMAGES)
    train_vae(pipeline, images, asked.out, asked.vae_steps)
    latents = latents_of(pipeline, images)
    factor = 1 / latents.std().item()
    pipeline.vae.register_to_config(scaling_factor=factor)
    train_denoiser(pipeline, latents * factor, captions, asked.out, asked.steps)
    pipeline.save_pretrained(asked.out / "pipeline")
    about = {"made_by": "python benchmarks/captioned_pipeline.py", "steps": asked.steps, "vae_steps": asked.vae_steps}
    write_atomic(asked.out / "about.json", json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
