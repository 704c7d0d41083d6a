"""Z-Image: a flow from noise at time 0 to images at time 1; images and texts are lists, texts of any length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.models.families.family import Conditions, Family
from superlora_cli.models.families.naming import Naming

TOKENS = 512  # of Qwen3, at most


class ZImage(Family):
    """`ZImagePipeline`."""

    noisy, time = "x", "t"
    unguided = 0.0
    naming = Naming("transformer.", "z_image", "z-image")

    def times(self, times: Tensor) -> Tensor:
        return (1000 - times) / 1000

    def predict(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        frames = list(noisy[:, :, None])  # (C, 1, h, w) each
        found = denoiser(**{self.noisy: frames, self.time: self.times(times), **conditions})[0]
        return -torch.stack(list(found))[:, :, 0]

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        config = denoiser.config
        texts = [torch.empty(TOKENS, config.cap_feat_dim) for _ in range(batch)]
        return (batch, config.in_channels, size[1], size[0]), {"cap_feats": texts, "return_dict": False}
