"""Image generation from noise. Only this task imports diffusers, which takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from superlora_cli.tasks.task import Card, TaskKind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from superlora_cli.recipe.schema import Recipe, Section
    from superlora_cli.tasks.images import ImageTask


class DiffusionKind(TaskKind):
    """A model predicts the noise in an image."""

    data_keys = ()
    smooths = False
    card = Card("generate {place} --out images")
    generates = "classes"

    def section(self) -> type[Section]:
        from superlora_cli.tasks.diffusion.section import DiffusionSection

        return DiffusionSection

    def at_work(self, recipe: Recipe) -> type[ImageTask]:
        from superlora_cli.tasks.diffusion.task import Diffusion

        return Diffusion

    def inputs(self, model: nn.Module, recipe: Recipe, images: Tensor) -> tuple[Tensor, ...]:
        """Images with time steps and classes spread over their range."""
        import torch

        from superlora_cli.tasks.diffusion.section import DiffusionSection

        number = torch.arange(len(images), device=images.device)
        labels: Any = getattr(model, "classes", None) or 0
        return images, number * recipe.section(DiffusionSection).steps // len(images), number % (labels + 1)
