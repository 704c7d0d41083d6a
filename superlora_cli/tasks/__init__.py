"""The class of a recipe's task."""

from __future__ import annotations

from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks.images import ImageTask


def task_of(recipe: Recipe) -> type[ImageTask]:
    """The class that `recipe.task` means; diffusers, which takes seconds to load, is only imported for diffusion."""
    if recipe.task == "diffusion":
        from superlora_cli.tasks.diffusion.task import Diffusion

        return Diffusion
    from superlora_cli.tasks.classification.task import Classification

    return Classification
