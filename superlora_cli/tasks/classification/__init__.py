"""Image classification: one class per image, or any number of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from superlora_cli.errors import UsageError
from superlora_cli.tasks.task import Card, TaskKind

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import Recipe
    from superlora_cli.tasks.images import ImageTask


class ClassificationKind(TaskKind):
    """A model predicts the classes of an image."""

    card = Card(
        "eval {place} --predict IMAGES  # the classes of your own images",
        "merged.safetensors  # plain weights, for timm",
        "image-classification",
    )
    tells_classes = True
    taught = True

    def check_classes(self, recipe: Recipe, count: int | None) -> None:
        from superlora_cli.data.known import has_several_labels
        from superlora_cli.data.splits import class_names

        if count == 1 and not has_several_labels(recipe.data):
            named = "".join(f", '{name}'" for name in class_names(recipe.data) or ())
            hint = "one sub-folder of images per class: is data.name one level too high, or too low?"
            message = f"'{recipe.data.name}' has one class{named}, and nothing to tell it from"
            raise UsageError(message, where="data.name", hint=hint)

    def at_work(self, recipe: Recipe) -> type[ImageTask]:
        from superlora_cli.data.known import has_several_labels
        from superlora_cli.tasks.classification.multi_label import MultiLabel
        from superlora_cli.tasks.classification.task import Classification

        return MultiLabel if has_several_labels(recipe.data) else Classification
