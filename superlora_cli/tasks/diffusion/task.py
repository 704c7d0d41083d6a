"""Generation: a model learns to predict the noise in images (DDPM, ε), with and without their class (A.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.data.batches import Batch
from superlora_cli.data.known import has_several_labels
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import DataSection, Recipe
from superlora_cli.tasks.diffusion.section import DiffusionSection
from superlora_cli.tasks.draws import drawn, draws_per_image
from superlora_cli.tasks.images import ImageTask

DRAWS = 1000  # of noise and time step, at least, on a split: for a stable mean


def noise_schedule(recipe: Recipe) -> DDPMScheduler:
    """The recipe's noise schedule: T steps, β linear. A new one, because it moves its tensors to where it is used."""
    settings = recipe.section(DiffusionSection)
    return DDPMScheduler(settings.steps, settings.beta_start, settings.beta_end, "linear")


def _errors(model: nn.Module, recipe: Recipe, images: Tensor, labels: Tensor, steps: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise per image: (B,) float32."""
    noisy = noise_schedule(recipe).add_noise(images, noise, steps)
    return functional.mse_loss(model(noisy, steps, labels).float(), noise, reduction="none").mean(dim=(1, 2, 3))


class Diffusion(ImageTask):
    """The task as the training loop sees it, and its evaluation."""

    measure = "loss"

    @staticmethod
    def objective(model: nn.Module, recipe: Recipe, batch: Batch) -> Tensor:
        """Mean squared error of the predicted noise, at random time steps and with random noise.

        Both are drawn on the CPU from torch's own generator, whose state is in every checkpoint. So a resumed run
        continues with the same draws, whatever the device and the number of loader processes.

        Args:
            batch: images (B, 3, S, S) in [−1, 1] and classes (B,), on the model's device.
        """
        images, classes = batch
        settings = recipe.section(DiffusionSection)
        steps = torch.randint(settings.steps, (len(images),))
        noise = torch.randn(images.shape)
        named = (torch.rand(len(images)) >= settings.class_dropout).long()  # 0: without the class
        steps, noise, named = (drawn.to(images.device, non_blocking=True) for drawn in (steps, noise, named))
        return _errors(model, recipe, images, (classes + 1) * named, steps, noise).mean()

    @property
    def guessing(self) -> float:
        """The loss of predicting zero: the variance of the noise."""
        return 1.0

    @staticmethod
    def data(recipe: Recipe) -> DataSection:
        """No augmentation by default: the model would learn to generate cropped and mirrored images."""
        section = recipe.data
        return section.model_copy(update={"augment": section.augment or "none"})

    def known_classes(self) -> int:
        return int(self.model.classes or 0)  # type: ignore[arg-type]

    def check_classes(self) -> None:
        """Check that every image has one class, and that a conditional model has all classes."""
        if has_several_labels(self.recipe.data):
            hint = "data.multi_label: false, and a folder per class"
            raise UsageError("diffusion needs exactly one class per image", where="data.multi_label", hint=hint)
        known: int | None = self.model.classes  # type: ignore[assignment]
        if known is not None and self.splits.classes > known:
            message = f"'{self.recipe.data.name}' has {self.splits.classes} classes, the model {known}"
            raise UsageError(message, where="model.kwargs.classes", hint="use data with fewer classes, or another base")

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """The loss on a whole split, every image with its class, always with the same noise and time steps.

        So runs, settings and bases can be compared on the same data, whatever the batch size.
        """
        count = len(self.splits.named(split))
        own, seen, found = self.processes.share(count), 0, []
        passes = draws_per_image(count, DRAWS)
        with self.built.kept():
            for images, classes in self.batches_of(split):
                indices, seen = own[seen : seen + len(images)], seen + len(images)
                labels, total = classes + 1, torch.zeros(len(images), device=images.device)
                for number in range(passes):
                    steps, noise = self._draws([number * count + index for index in indices], images)
                    with self.processes.autocast():
                        total += _errors(self.model, self.recipe, images, labels, steps, noise)
                found.append(total / passes)
        errors = self.processes.gather(torch.cat(found), count)  # (count,)
        self.check_outputs(errors[:, None])
        return {"loss": errors.double().mean().item()}

    def _draws(self, keys: Sequence[int], images: Tensor) -> tuple[Tensor, Tensor]:
        """Time steps (B,) int64 and noise, of the shape of `images`, that depend only on each image's key."""
        times, noise = drawn(keys, images)
        steps = torch.tensor([int(self.recipe.section(DiffusionSection).steps * time) for time in times])
        return steps.to(images.device), noise.to(images.device)
