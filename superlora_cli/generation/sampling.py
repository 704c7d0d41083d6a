"""Images from noise: a class-conditional noise predictor, a noise schedule and one of three samplers.

The model is called as `model(images, steps, labels)` with images (B, 3, S, S) around [−1, 1], steps (B,) int64 and
labels (B,) int64, where label 0 is the null class and label c + 1 is class c; it returns the noise ε (B, 3, S, S).

An image depends only on the seed, its index, its class and the settings, for two reasons. Each image draws all its
noise from its own generator. And the model always gets the same number of images: kernels are chosen by input size, so
the same image differs in its last bits in a batch of 4 and of 16 (measured: 1e-6 of ε), which shows in the pixels in
the end. Batches consist of such passes of equal size; the last is padded.
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
PASS = {"cpu": 16}  # images per forward pass, twice that with guidance; more is not faster on a CPU
LARGE_PASS = 64  # on any other device


class ClippedDPMSolver(DPMSolverMultistepScheduler):
    """DPM-Solver++ with plain clipping like the other two; diffusers' thresholding would sort all pixels first."""

    def _threshold_sample(self, sample: Tensor) -> Tensor:
        return sample.clamp(-1, 1)


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process: β rises linearly over `steps` steps (the paper's A.2)."""

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def scheduler(self, sampler: Sampler) -> Any:
        """The diffusers scheduler of a sampler.

        The model predicts ε. The image predicted in each step is clipped to [−1, 1], as diffusers does by default; the
        paper's code base only clips the last one, which fails for strong guidance in few steps. DDPM's noise has the
        variance of the posterior (`fixed_small`), which is still right when steps are skipped. DDPM and DDIM start at
        the last, noisiest step (`trailing`, arXiv 2305.08891), as the code base does; DDIM has η = 0.
        """
        common = {"num_train_timesteps": self.steps, "beta_start": self.beta_start, "beta_end": self.beta_end}
        if sampler == "ddpm":
            return DDPMScheduler(**common, timestep_spacing="trailing", clip_sample=True)
        if sampler == "ddim":
            return DDIMScheduler(**common, timestep_spacing="trailing", clip_sample=True)
        return ClippedDPMSolver(**common, algorithm_type="dpmsolver++", thresholding=True)

    def default_steps(self, sampler: Sampler) -> int:
        """All steps for DDPM, otherwise about as many as the sampler needs: of 1,000, 50 for DDIM, 25 for
        DPM-Solver++."""
        if sampler == "ddpm":
            return self.steps
        if sampler == "ddim":
            return next(n for n in range(min(50, self.steps), 0, -1) if self.steps % n == 0)
        return max(1, min(25, self.steps - 1))

    def checked_steps(self, sampler: str, steps: int | None) -> int:
        """`steps`, or the sampler's default.

        Raises:
            UsageError: the sampler is unknown, or cannot take that number of steps; the hint says which it can.
        """
        if sampler not in SAMPLERS:
            hint = did_you_mean(sampler, SAMPLERS) or "one of " + ", ".join(SAMPLERS)
            raise UsageError(f"unknown sampler '{sampler}'", where="--sampler", hint=hint)
        if steps is None:
            return self.default_steps(sampler)
        if not 1 <= steps <= self.steps:
            message = f"{steps} sampling steps, but the noise schedule has {self.steps}"
            raise UsageError(message, where="--steps", hint=f"1 to {self.steps}")
        if sampler == "dpm++":
            if steps == self.steps:  # two of its steps would have the same noise, and it divides by the difference
                hint = f"at most {self.steps - 1}; 20 to 50 are enough"
                raise UsageError(f"dpm++ skips steps and cannot take all {steps}", where="--steps", hint=hint)
        elif self.steps % steps:
            divisors = [n for n in range(1, self.steps + 1) if self.steps % n == 0]
            below, above = max(n for n in divisors if n < steps), min(n for n in divisors if n > steps)
            message = f"{sampler} takes equal steps, but {steps} does not divide {self.steps}"
            raise UsageError(message, where="--steps", hint=f"{below} or {above}; dpm++ takes any number")
        return steps


def check_amounts(guidance: float, batch_size: int) -> None:
    """Refuse an invalid guidance weight or batch size.

    Raises:
        UsageError: names the option.
    """
    if not (math.isfinite(guidance) and guidance >= 0):
        raise UsageError(f"guidance {guidance}", where="--guidance", hint="0 or more; 0 turns it off")
    if batch_size < 1:
        raise UsageError(f"batches of {batch_size} images", where="--batch-size", hint="1 or more")


def pass_size(device: torch.device) -> int:
    """The fixed number of images per forward pass."""
    return PASS.get(device.type, LARGE_PASS)


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator of all noise of one image, on the CPU, so that all devices start from the same noise.

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
    """Generate images in batches, uint8 (b, 3, S, S): image i has the class `classes[i]`.

    Args:
        model: in eval mode, with the device and dtype to sample with.
        classes: (N,) from 0, without the shift for the null class.
        sampler, steps: as `NoiseSchedule.checked_steps` allows.
        guidance: w ≥ 0.
        batch_size: images that are sampled together and yielded together, rounded up to whole passes; it does not
            affect the images.
        on_step: called after each step with its number of images; N × steps in total.

    Raises:
        UsageError: the settings are inconsistent. RunError: the model gives NaN or Inf.
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
        scheduler.set_timesteps(steps)  # resets it: DPM-Solver++ remembers earlier steps
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
