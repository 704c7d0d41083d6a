"""Qwen-Image: a flow over packed latents of an autoencoder of videos; texts of any length, with a mask in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from superlora_cli.models.families.family import Conditions
from superlora_cli.models.families.naming import Naming
from superlora_cli.models.families.packed import Packed, packed

TOKENS = 512  # of Qwen2.5-VL, at most
BLANK = " "  # the negative prompt if none is given: a blank, since without any the pipeline does not guide
WORDS, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"


class QwenImage(Packed):
    """`QwenImagePipeline`."""

    autoencodes = False
    naming = Naming("transformer.", "qwen_image", "qwen-image")

    def scale(self, vae: Mapping[str, Any]) -> int:
        return int(2 ** len(vae["temperal_downsample"]))

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        plain = vae.encode(images[:, :, None]).latent_dist.mode()[:, :, 0]  # of one frame
        numbers = vae.config.latents_mean, vae.config.latents_std
        middle, width = (torch.tensor(each).view(1, -1, 1, 1).to(plain) for each in numbers)
        return packed((plain - middle) / width)

    def steered(self, guidance: float | None, negative: str | None) -> dict[str, Any]:
        """Guidance is away from a negative prompt."""
        if guidance is None:
            return super().steered(None, negative)
        return {"true_cfg_scale": guidance, "negative_prompt": negative or BLANK}

    def dropped(self, pipeline: Any, size: tuple[int, int], guidance: float = 1.0) -> Conditions:
        return self.conditions(pipeline, [BLANK], size, guidance)

    def together(self, samples: Sequence[Conditions]) -> Conditions:
        """Shorter texts are followed by zeros, as the pipeline does."""
        texts = [sample[WORDS][0] for sample in samples]  # (tokens, width) each
        longest = max(map(len, texts))
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        equal = all(len(text) == longest for text in texts)
        words = {WORDS: pad_sequence(texts, batch_first=True), MASK: None if equal else mask}
        others = [{name: value for name, value in sample.items() if name not in words} for sample in samples]
        return {**super().together(others), **words}

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        config, (width, height) = denoiser.config, (size[0] // 2, size[1] // 2)
        conditions = {
            WORDS: torch.empty(batch, TOKENS, config.joint_attention_dim),
            "img_shapes": [[(1, height, width)]] * batch,
            "return_dict": False,
        }
        return (batch, width * height, config.in_channels), conditions
