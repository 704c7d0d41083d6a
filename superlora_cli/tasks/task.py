"""All that commands may ask of a task before it is at work, on one page.

A task is one object in `tasks.TASKS`, by the name that `task:` has in a recipe. `start` puts it to work on a model and data;
what the training loop asks then is `training.loop.Task`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from superlora_cli.opening.built import Built
    from superlora_cli.recipe.schema import Recipe
    from superlora_cli.tasks.images import ImageTask
    from superlora_cli.training.processes import Processes


class TaskKind:
    """A task; what takes time to import is imported in the methods.

    Attributes:
        generates: a model of it makes images: `generate`, `eval --against`, `measure:` in a sweep.
        tells_classes: a model of it says which class an image has: `eval --predict` and `--plot`, a new head.
    """

    generates = False
    tells_classes = False

    def trains_head(self, recipe: Recipe) -> bool:
        """Whether a new head is trained beside the adapter."""
        return self.tells_classes and recipe.model.head == "new"

    def start(self, built: Built, processes: Processes) -> ImageTask:
        """The task at work: the model on its device, the data read.

        Raises:
            UsageError: data that are not there, or do not fit the model.
        """
        raise NotImplementedError

    def objective(self, model: nn.Module, recipe: Recipe, batch: Any) -> Tensor:
        """The mean loss of `model` on a batch, a scalar."""
        raise NotImplementedError

    def inputs(self, model: nn.Module, recipe: Recipe, images: Tensor) -> tuple[Tensor, ...]:
        """What the model is called with for images (n, 3, S, S), where any choice does, on their device."""
        return (images,)
