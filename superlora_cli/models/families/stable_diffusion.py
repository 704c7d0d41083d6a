"""Stable Diffusion 1 and 2: a U-Net that attends to the tokens of one text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from superlora_cli.models.families.family import Conditions, Family
from superlora_cli.models.families.naming import Naming, Rows, weighted
from superlora_cli.models.families.noise import Diffusion

TOKENS = 77  # of CLIP's text encoders
NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}  # beside the blocks
RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


class UNetNaming(Naming):
    """In the original checkpoint, what a block does one after another is one list, for all blocks down or up."""

    def version(self, denoiser: Any) -> tuple[str, str]:
        """Stable Diffusion 2 attends to a wider text."""
        second = denoiser.config.cross_attention_dim == 1024
        return ("sd_v2", "stable-diffusion-v2-768-v") if second else (self.program, self.architecture)

    def originals(self, denoiser: nn.Module) -> dict[str, list[Rows]]:
        places = {own: name for name, own in NAMES.items()}
        for way, blocks in (("input", denoiser.down_blocks), ("output", denoiser.up_blocks)):
            number = 1 if way == "input" else 0  # 0 is `conv_in`
            for index, block in enumerate(blocks):  # type: ignore[arg-type]
                own = f"{'down' if way == 'input' else 'up'}_blocks.{index}"
                attends = hasattr(block, "attentions")
                for place in range(len(block.resnets)):
                    places[f"{own}.resnets.{place}"] = f"{way}_blocks.{number}.0"
                    places[f"{own}.attentions.{place}"] = f"{way}_blocks.{number}.1"
                    number += 1
                places[f"{own}.upsamplers.0"] = f"{way}_blocks.{number - 1}.{1 + attends}"
                if getattr(block, "downsamplers", None):
                    places[f"{own}.downsamplers.0.conv"] = f"{way}_blocks.{number}.0.op"
                    number += 1
        return {
            renamed: [Rows(module, 0, size)]
            for module, size in weighted(denoiser).items()
            if (renamed := _renamed(module, places))
        }


def _renamed(module: str, places: Mapping[str, str]) -> str | None:
    """The name of the longest part of a module's name that has one, and the rest of it."""
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        if (place := places.get(".".join(parts[:count]))) is not None:
            rest = parts[count:]
            if rest and parts[count - 2] == "resnets":
                rest = [RESNET[rest[0]]]
            return ".".join([place, *rest])
    return None


class StableDiffusion(Family):
    """`StableDiffusionPipeline`."""

    denoiser, noisy = "unet", "sample"
    noise = Diffusion
    naming: ClassVar[Naming] = UNetNaming(
        "lora_unet_", "sd_v1", "stable-diffusion-v1", encoders={"text_encoder": ("lora_te_", "lora_te1_")}
    )

    def multiple(self, denoiser: Any) -> int:
        """As often as the U-Net halves its latents: an odd half is doubled to another size."""
        return int(2 ** (len(denoiser.config.block_out_channels) - 1))

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        plain: Tensor = vae.encode(images).latent_dist.mode()
        return plain * vae.config.scaling_factor

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        config = denoiser.config
        words = {"encoder_hidden_states": torch.empty(batch, TOKENS, config.cross_attention_dim)}
        return (batch, config.in_channels, size[1], size[0]), words
