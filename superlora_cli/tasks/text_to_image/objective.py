"""The loss: the squared error of a denoiser's prediction, at random times and with random noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.models.families.family import Conditions, Family
from superlora_cli.models.families.noise import Diffusion, Flow, moved
from superlora_cli.models.pipelines import PipelineBase, in_one_line
from superlora_cli.models.quantising import precision
from superlora_cli.tasks.text_to_image.section import TextToImageSection
from superlora_cli.tasks.text_to_image.sizes import Size

EMPTY = ""  # the caption of an image whose own is dropped
Conditioning = Callable[[Sequence[str], Size], Conditions]  # the denoiser's arguments for captions, all together


@dataclass(frozen=True)
class Batch:
    """Images of one size with their captions.

    Attributes:
        latents: without noise, as the denoiser sees them, (B, C, h, w) or packed (B, tokens, C).
        size: in pixels.
        beside: how many images, the last ones, are there to preserve what the model knows.
    """

    latents: Tensor
    captions: Sequence[str]
    size: Size
    beside: int = 0


class Objective:
    """The loss of a pipeline's denoiser, as a recipe's section sets it.

    Args:
        conditioning: how captions become arguments of the denoiser.

    Raises:
        UsageError: Min-SNR weights are wanted for a flow.
    """

    def __init__(self, base: PipelineBase, settings: TextToImageSection, conditioning: Conditioning) -> None:
        self.family: Family = base.family
        self.conditioning = conditioning
        self.noise: Diffusion | Flow = self.family.noise(base.scheduler)
        self.settings = settings
        if settings.min_snr is not None:
            self.noise.weights(torch.zeros(1, dtype=torch.long), settings.min_snr)

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        """The mean over a batch.

        All is drawn on the CPU from torch's own generator, whose state is in every checkpoint. So a resumed run
        continues with the same draws.
        """
        latents, settings = batch.latents, self.settings
        times = self.noise.times(self.shares(len(latents), self.family.tokens(latents)))
        noise = torch.randn(latents.shape)
        if settings.noise_offset:
            noise += settings.noise_offset * torch.randn(_of_channels(latents))
        captions = list(batch.captions)
        if settings.caption_dropout:
            dropped = (torch.rand(len(latents)) < settings.caption_dropout).tolist()
            captions = [EMPTY if drop else own for drop, own in zip(dropped, captions, strict=True)]
        found = self.errors(model, latents, noise, times, self.conditioning(captions, batch.size), device)
        if settings.min_snr is not None:
            found = found * self.noise.weights(times, settings.min_snr).to(device)
        if not batch.beside:
            return found.mean()
        assert settings.prior is not None
        own, beside = found[: -batch.beside], found[-batch.beside :]
        return own.mean() + settings.prior.weight * beside.mean()

    def shares(self, count: int, tokens: int) -> Tensor:
        """Random shares of the way to noise, (count,), for images that are so many tokens to the denoiser."""
        settings = self.settings
        normal = self.noise.normal if settings.times is None else settings.times == "logit-normal"
        drawn = torch.randn(count).sigmoid() if normal else torch.rand(count)
        return moved(drawn, self.noise.shift(tokens) if settings.shift is None else settings.shift)

    def errors(
        self,
        model: nn.Module,
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
        conditions: Conditions,
        device: torch.device,
    ) -> Tensor:
        """The mean squared error of each image: (B,) float32."""
        latents, noise = latents.float().to(device), noise.to(device)
        noisy, target = self.noise.noisy(latents, noise, times), self.noise.target(latents, noise, times)
        own = precision(model)  # of a base in half precision, whose text encoders may have another one
        hint = None if own == torch.float32 else "train.precision: bf16, or model.kwargs.torch_dtype"
        with in_one_line("cannot be run", self.family.denoiser, hint=hint):
            predicted = self.family.predict(model, noisy.to(own), times.to(device), moved_to(conditions, device))
        return functional.mse_loss(predicted.float(), target, reduction="none").flatten(1).mean(1)


def _of_channels(latents: Tensor) -> tuple[int, ...]:
    """The shape of one number for every image and channel: (B, C, 1, 1), or (B, 1, C) if they are packed."""
    count, second, third = latents.shape[:3]
    return (count, second, 1, 1) if latents.dim() == 4 else (count, 1, third)


def moved_to(value: Any, device: torch.device) -> Any:
    """Nested dicts and lists with their tensors on a device."""
    if isinstance(value, Mapping):
        return {name: moved_to(part, device) for name, part in value.items()}
    if isinstance(value, list):
        return [moved_to(part, device) for part in value]
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
