"""Image classification: one class per image, or any number of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from superlora_cli.tasks.task import TaskKind

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import Recipe
    from superlora_cli.tasks.images import ImageTask


class ClassificationKind(TaskKind):
    """A model predicts the classes of an image."""

    tells_classes = True

    def at_work(self, recipe: Recipe) -> type[ImageTask]:
        from superlora_cli.data.known import has_several_labels
        from superlora_cli.tasks.classification.multi_label import MultiLabel
        from superlora_cli.tasks.classification.task import Classification

        return MultiLabel if has_several_labels(recipe.data) else Classification
