"""The base model of a recipe, for a new training or for a stored adapter: all commands build it here."""

from __future__ import annotations

from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.data.known import check_there
from superlora_cli.data.splits import class_count
from superlora_cli.errors import UsageError
from superlora_cli.models.base import Base
from superlora_cli.models.build import build
from superlora_cli.models.heads import classes_told_apart
from superlora_cli.models.repeated import build_seeded
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import TASKS


def open_base(
    recipe: Recipe, stored: StoredAdapter | None = None, *, classes: int | None = None, weights: bool = True
) -> Base:
    """The base of `recipe`, checked against its task; weights that no file has are drawn with the recipe's seed.

    Args:
        stored: an adapter for this base; its number of classes is used.
        classes: number of classes; default: that of `stored`, or of the data.
        weights: False builds shapes only (on the meta device): no download, no memory.

    Raises:
        UsageError, MismatchError: as `models.build.build`, or the base is made for another task; or
            the data of a new training have too few classes.
    """
    kind = TASKS[recipe.task]
    if classes is None and (kind.has_classes or kind.trains_head(recipe)):
        classes = classes_of(stored, recipe) if stored else class_count(recipe.data)
        if classes is None and kind.trains_head(recipe):
            check_there(recipe.data)  # if not, that is why
        if not stored:
            kind.check_classes(recipe, classes)
    image_size = recipe.data.image_size
    if weights:
        base = build_seeded(recipe.model, recipe.seed, classes=classes, image_size=image_size)
    else:
        base = build(recipe.model, classes=classes, image_size=image_size, weights=False)
    task = kind.bases or recipe.task
    if task != base.task:
        message = f"{recipe.model.name} is a base for {base.task}, not for {recipe.task}"
        raise UsageError(message, where="task", hint=f"task: {base.task}, or another base")
    if recipe.adapter is not None:
        base.include(recipe.adapter.patterns)
    return base


def without_quantising(recipe: Recipe) -> Recipe:
    """The same recipe, whose base has all its bits."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantize": None})})


def classes_of(stored: StoredAdapter, recipe: Recipe) -> int | None:
    """Number of classes of a stored model: from the names in the file, the rows of its head, or the data."""
    if stored.classes or stored.head:
        return len(stored.classes) or classes_told_apart(stored.head)
    return class_count(recipe.data) if recipe.model.head == "new" else None
