"""How images are noised, and what is predicted of them: diffusion with variances, or a flow along straight lines.

Each is built from a pipeline's own scheduler. Times are in the unit of that scheduler.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from superlora_cli.errors import UsageError


def _like(values: Tensor, latents: Tensor) -> Tensor:
    """(B,) → (B, 1, ...), on the same device."""
    return values.to(latents.device, latents.dtype).view(-1, *[1] * (latents.dim() - 1))


class Diffusion:
    """x_t = √ᾱ_t x + √(1 − ᾱ_t) n, at whole times t = 0 ... T − 1; predicted is n, x, or √ᾱ_t n − √(1 − ᾱ_t) x.

    Args:
        scheduler: a scheduler of diffusers; what it does to latents beside noising them, such as scaling them to unit
            variance, is undone before they reach the denoiser.
    """

    normal = False  # times are drawn evenly, unless the recipe says otherwise

    def __init__(self, scheduler: Any) -> None:
        from diffusers import DDPMScheduler

        self.schedule: Tensor = DDPMScheduler.from_config(scheduler.config).alphas_cumprod  # (T,)
        self.predicts = str(scheduler.config.get("prediction_type", "epsilon"))

    def shift(self, tokens: int) -> float:
        """How much times are moved towards more noise by default: not at all."""
        return 1.0

    def times(self, shares: Tensor) -> Tensor:
        """Shares of the way to noise, (B,) in [0, 1), as times."""
        return (shares * len(self.schedule)).long().clamp(max=len(self.schedule) - 1)

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t."""
        kept = _like(self.schedule[times], latents)
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What is to be predicted of x_t."""
        if self.predicts == "epsilon":
            return noise
        if self.predicts == "sample":
            return latents
        kept = _like(self.schedule[times], latents)
        return kept.sqrt() * noise - (1 - kept).sqrt() * latents

    def weights(self, times: Tensor, most: float) -> Tensor:
        """Min-SNR weights of the squared errors (Hang et al., 2023, γ = `most`): (B,)."""
        kept = self.schedule[times]
        ratio = kept / (1 - kept)
        return (
            ratio.clamp(max=most)
            / {"epsilon": ratio, "sample": torch.ones(()), "v_prediction": ratio + 1}[self.predicts]
        )


class Flow:
    """x_σ = (1 − σ) x + σ n, at times t = 1000 σ; predicted is n − x (rectified flow)."""

    normal = True  # times are drawn around the middle (Esser et al., 2024), unless the recipe says otherwise

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.most: int = scheduler.config.num_train_timesteps

    def shift(self, tokens: int) -> float:
        """How much the scheduler moves times towards more noise, for a sequence of so many tokens."""
        config = self.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return float(config["flow_shift"] if "flow_shift" in config else config["shift"])
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return math.exp(config.base_shift + slope * (tokens - config.base_image_seq_len))

    def times(self, shares: Tensor) -> Tensor:
        """Shares of the way to noise, σ, as times."""
        return shares * self.most

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_σ."""
        share = _like(times / self.most, latents)
        return (1 - share) * latents + share * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The direction from the image to the noise."""
        return noise - latents

    def weights(self, times: Tensor, most: float) -> Tensor:
        """None: refuses min-SNR weights."""
        hint = "leave it out, or choose the times by text-to-image.times"
        raise UsageError("a flow has no min-SNR weights", where="text-to-image.min_snr", hint=hint)


def moved(shares: Tensor, shift: float) -> Tensor:
    """Shares of the way to noise, moved towards more noise: s·u / (1 + (s − 1)·u).

    >>> moved(torch.tensor([0.0, 0.5, 1.0]), 3.0)
    tensor([0.0000, 0.7500, 1.0000])
    """
    return shift * shares / (1 + (shift - 1) * shares)
