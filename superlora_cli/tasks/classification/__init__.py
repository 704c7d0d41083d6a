"""Image classification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from superlora_cli.tasks.task import TaskKind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from superlora_cli.opening.built import Built
    from superlora_cli.recipe.schema import Recipe
    from superlora_cli.tasks.images import ImageTask
    from superlora_cli.training.processes import Processes


class ClassificationKind(TaskKind):
    """A model says which class an image has."""

    tells_classes = True

    def start(self, built: Built, processes: Processes) -> ImageTask:
        from superlora_cli.tasks.classification.task import Classification

        return Classification(built, processes)

    def objective(self, model: nn.Module, recipe: Recipe, batch: Any) -> Tensor:
        from superlora_cli.tasks.classification.task import Classification

        return Classification.objective(model, recipe, batch)
