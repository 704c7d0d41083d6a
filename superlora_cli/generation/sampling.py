"""Images from noise: a class-conditional noise predictor, a noise schedule and one of three samplers.

The model is called as `model(images, steps, labels)` with images (B, 3, S, S) around [−1, 1], steps (B,) int64 and
labels (B,) int64, where label 0 is the null class and label c + 1 is class c; it gives the noise ε (B, 3, S, S).

An image depends on the seed, its index, its class and the settings, and on nothing else. Two things see to that.
Each image draws all its noise from a generator of its own. And the model always sees the same number of images: a
kernel is chosen by the size of its input, so 4 images and 16 images differ in the last bits of the very same image
(measured: 1e-6 of ε), which the pixels show in the end. Batches are made of whole such passes; the last is filled up.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor, nn

from superlora_cli.errors import RunError, UsageError, did_you_mean

Sampler = Literal["ddpm", "ddim", "dpm++"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
GUIDANCE = 1.8  # w of the paper's code base
PASS = {"cpu": 16}  # images the model sees at once, guided ones twice; more gains nothing on a CPU
LARGE_PASS = 64  # on any other device


class ClippedDPMSolver(DPMSolverMultistepScheduler):
    """DPM-Solver++ with the plain clipping of the other two, for which diffusers would sort all pixels first."""

    def _threshold_sample(self, sample: Tensor) -> Tensor:
        return sample.clamp(-1, 1)


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process: β rises linearly over `steps` steps (the paper's A.2)."""

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def scheduler(self, sampler: Sampler) -> Any:
        """The sampler of that name from diffusers.

        The model predicts ε. The image that each step foresees is clipped to [−1, 1], as diffusers does by default;
        the paper's code base clips the last one only, which strong guidance does not survive in few steps. DDPM's noise
        has the posterior's variance (`fixed_small`), the one that still fits when steps are left out. DDPM and DDIM
        start at the last, noisiest step (`trailing`, arXiv 2305.08891), as the code base does; DDIM has η = 0.
        """
        common = {"num_train_timesteps": self.steps, "beta_start": self.beta_start, "beta_end": self.beta_end}
        if sampler == "ddpm":
            return DDPMScheduler(**common, timestep_spacing="trailing", clip_sample=True)
        if sampler == "ddim":
            return DDIMScheduler(**common, timestep_spacing="trailing", clip_sample=True)
        return ClippedDPMSolver(**common, algorithm_type="dpmsolver++", thresholding=True)

    def default_steps(self, sampler: Sampler) -> int:
        """All for DDPM; otherwise about as many as the sampler needs, of 1,000: 50 for DDIM, 25 for DPM-Solver++."""
        if sampler == "ddpm":
            return self.steps
        if sampler == "ddim":
            return next(n for n in range(min(50, self.steps), 0, -1) if self.steps % n == 0)
        return max(1, min(25, self.steps - 1))

    def checked_steps(self, sampler: str, steps: int | None) -> int:
        """`steps`, or the sampler's default.

        Raises:
            UsageError: an unknown sampler, or a number of steps that it cannot take; names the nearest that it can.
        """
        if sampler not in SAMPLERS:
            hint = did_you_mean(sampler, SAMPLERS) or "one of " + ", ".join(SAMPLERS)
            raise UsageError(f"unknown sampler '{sampler}'", where="--sampler", hint=hint)
        if steps is None:
            return self.default_steps(sampler)
        if not 1 <= steps <= self.steps:
            message = f"{steps} steps of noise that has {self.steps}"
            raise UsageError(message, where="--steps", hint=f"1 to {self.steps}")
        if sampler == "dpm++":
            if steps == self.steps:  # two of its steps would fall on the same noise, and it divides by the difference
                hint = f"at most {self.steps - 1}; 20 to 50 are enough"
                raise UsageError(f"dpm++ skips steps, it cannot take all {steps}", where="--steps", hint=hint)
        elif self.steps % steps:
            divisors = [n for n in range(1, self.steps + 1) if self.steps % n == 0]
            below, above = max(n for n in divisors if n < steps), min(n for n in divisors if n > steps)
            message = f"{sampler} takes equal steps, and {steps} does not divide {self.steps}"
            raise UsageError(message, where="--steps", hint=f"{below} or {above}; dpm++ takes any number")
        return steps


def check_amounts(guidance: float, batch_size: int) -> None:
    """Refuse what is no weight of guidance or no batch size.

    Raises:
        UsageError: names the option.
    """
    if not (math.isfinite(guidance) and guidance >= 0):
        raise UsageError(f"guidance {guidance}", where="--guidance", hint="0 or more; 0 is none")
    if batch_size < 1:
        raise UsageError(f"batches of {batch_size} images", where="--batch-size", hint="1 or more")


def pass_size(device: torch.device) -> int:
    """Number of images that the model sees at once, always."""
    return PASS.get(device.type, LARGE_PASS)


def image_generator(seed: int, index: int) -> torch.Generator:
    """The source of all noise of one image, on the CPU, so that devices start from the same noise.

    >>> image_generator(0, 7).initial_seed() == image_generator(0, 8).initial_seed()
    False
    """
    key = hashlib.sha256(f"{seed}/sample/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))


def guided_noise(model: nn.Module, images: Tensor, step: int, classes: Tensor, guidance: float) -> Tensor:
    """ε = (1 + w)·ε_c − w·ε_u (Ho & Salimans 2022), both from one forward pass; for w = 0 just ε_c.

    Args:
        images: (B, 3, S, S) in the model's dtype, all at the same `step`.
        classes: (B,) from 0, without the shift for the null class.

    Returns:
        (B, 3, S, S) float32.
    """
    labels = classes + 1
    if guidance:
        images, labels = torch.cat([images, images]), torch.cat([labels, torch.zeros_like(labels)])
    steps = torch.full((len(images),), step, dtype=torch.int64, device=images.device)
    noise = cast(Tensor, model(images, steps, labels)).float()
    if not guidance:
        return noise
    conditional, unconditional = noise.chunk(2)
    return (1 + guidance) * conditional - guidance * unconditional


@torch.no_grad()
def sample_batches(
    model: nn.Module,
    classes: Tensor | Sequence[int],
    *,
    image_size: int,
    sampler: Sampler = "ddim",
    steps: int | None = None,
    guidance: float = GUIDANCE,
    seed: int = 0,
    batch_size: int = 64,
    schedule: NoiseSchedule | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """Images batch after batch, uint8 (b, 3, S, S): image i shows `classes[i]`.

    Args:
        model: in eval mode, on the device and in the dtype to sample with.
        classes: (N,) from 0, without the shift for the null class.
        sampler, steps: as `NoiseSchedule.checked_steps` allows.
        guidance: w ≥ 0.
        batch_size: images that go through all steps together and are given together, rounded up to whole passes; they
            do not depend on it.
        on_step: called with the number of images that have been taken one step further; N × steps in all.

    Raises:
        UsageError: settings that do not go together. RunError: the model gives NaN or Inf.
    """
    schedule = schedule or NoiseSchedule()
    steps = schedule.checked_steps(sampler, steps)
    check_amounts(guidance, batch_size)
    first = next(model.parameters())
    device, dtype, together = first.device, first.dtype, pass_size(first.device)
    wanted = torch.as_tensor(classes, dtype=torch.int64)
    filled = torch.cat([wanted, wanted.new_zeros(-len(wanted) % together)]).to(device)
    scheduler = schedule.scheduler(sampler)
    size = math.ceil(batch_size / together) * together
    for start in range(0, len(wanted), size):
        shown = filled[start : start + size]  # (b,), b a multiple of `together`
        asked_for = min(size, len(wanted) - start)
        generators = [image_generator(seed, start + index) for index in range(len(shown))]
        shape = (3, image_size, image_size)
        images = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
        scheduler.set_timesteps(steps)  # afresh: DPM-Solver++ remembers the steps before
        for step in scheduler.timesteps.tolist():
            noise = torch.cat([
                guided_noise(model, part.to(dtype), step, labels, guidance)
                for part, labels in zip(images.split(together), shown.split(together), strict=True)
            ])  # fmt: skip
            images = scheduler.step(noise, step, images, generator=generators).prev_sample  # (b, 3, S, S)
            if on_step is not None:
                on_step(asked_for)
        if not torch.isfinite(images).all():
            raise RunError("the model gives NaN or Inf", hint="train.precision=fp32, or an adapter that converged")
        yield ((images[:asked_for].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def sample(model: nn.Module, classes: Tensor | Sequence[int], *, image_size: int, **settings: Any) -> Tensor:
    """All images at once, uint8 (N, 3, S, S); arguments and errors as `sample_batches`."""
    batches = list(sample_batches(model, classes, image_size=image_size, **settings))
    return torch.cat(batches) if batches else torch.empty((0, 3, image_size, image_size), dtype=torch.uint8)
