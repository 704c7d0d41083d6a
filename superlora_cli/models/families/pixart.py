"""PixArt-α and PixArt-Σ: diffusion with a transformer, with the tokens of T5; it predicts a variance, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.models.families.family import OF_ANY_SIZE, Conditions
from superlora_cli.models.families.naming import Naming
from superlora_cli.models.families.stable_diffusion import StableDiffusion


class PixArt(StableDiffusion):
    """`PixArtAlphaPipeline` and `PixArtSigmaPipeline`.

    Args:
        tokens: of T5.
    """

    denoiser, noisy = "transformer", "hidden_states"
    call = OF_ANY_SIZE
    naming = Naming("transformer.", "pixart", "pixart")

    def __init__(self, tokens: int) -> None:
        self.most = tokens

    def multiple(self, denoiser: Any) -> int:
        """The transformer sees patches of latents."""
        return int(denoiser.config.patch_size)

    def predict(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """The first half of the channels; the second is the variance, which no scheduler uses."""
        return super().predict(denoiser, noisy, times, conditions)[:, : noisy.shape[1]]

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        config = denoiser.config
        resolution = (
            (torch.empty(batch, 2), torch.empty(batch, 1)) if config.use_additional_conditions else (None, None)
        )
        conditions = {
            "encoder_hidden_states": torch.empty(batch, self.most, config.caption_channels),
            "encoder_attention_mask": torch.empty(batch, self.most, dtype=torch.long),
            "added_cond_kwargs": dict(zip(("resolution", "aspect_ratio"), resolution, strict=True)),
        }
        return (batch, config.in_channels, size[1], size[0]), conditions
