"""All that commands may ask of a task before it is at work, on one page.

A task is one object in `tasks.TASKS`, by the name that `task:` has in a recipe. What does the work on a model and data
is an `ImageTask`, which the training loop sees as `training.loop.Task`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from superlora_cli.recipe.schema import Recipe, Section
    from superlora_cli.tasks.images import ImageTask


class TaskKind:
    """A task; what takes time to import is imported in the methods.

    Attributes:
        generates: a model of it makes images: `generate`, `eval --against`, `measure:` in a sweep.
        tells_classes: a model of it says which classes an image has: `eval --predict`, a new head.
        mixes: its training images may be mixed with others, by `data.mixup` and `data.cutmix`.
        bases: the name of the task that its bases are made for; its own where it says nothing.
    """

    generates = False
    tells_classes = False
    mixes = True
    bases: str | None = None

    def section(self) -> type[Section] | None:
        """The keys of a recipe that this task alone has, under its name; None where it has none."""
        return None

    def trains_head(self, recipe: Recipe) -> bool:
        """Whether a new head is trained beside the adapter."""
        return self.tells_classes and recipe.model.head == "new"

    def at_work(self, recipe: Recipe) -> type[ImageTask]:
        """The class that does the work of this recipe."""
        raise NotImplementedError

    def inputs(self, model: nn.Module, recipe: Recipe, images: Tensor) -> tuple[Tensor, ...]:
        """What `model` is called with to see images (n, 3, S, S); where more is needed, any will do."""
        return (images,)
