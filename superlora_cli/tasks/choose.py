"""The class of a recipe's task."""

from __future__ import annotations

from superlora_cli.data.splits import has_several_labels
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks.images import ImageTask


def task_of(recipe: Recipe) -> type[ImageTask]:
    """The class that `recipe.task` and its data mean.

    diffusers, which takes seconds to load, is only imported for diffusion.
    """
    if recipe.task == "diffusion":
        from superlora_cli.tasks.diffusion import Diffusion

        return Diffusion
    if has_several_labels(recipe.data):
        from superlora_cli.tasks.multi_label import MultiLabel

        return MultiLabel
    from superlora_cli.tasks.classification import Classification

    return Classification
