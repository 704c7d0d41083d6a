"""The base of a recipe, of a new training or of a file: built here for all who open either."""

from __future__ import annotations

from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.data.splits import class_count
from superlora_cli.errors import UsageError
from superlora_cli.models.base import Base
from superlora_cli.models.build import build
from superlora_cli.models.repeated import build_seeded
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import TASKS


def open_base(
    recipe: Recipe, stored: StoredAdapter | None = None, *, classes: int | None = None, weights: bool = True
) -> Base:
    """The base of `recipe`, made for its task; what no file has of it is drawn by the recipe's seed.

    Args:
        stored: the adapter that is for it, which knows its classes.
        classes: how many it tells apart, where that is known; default: as `stored` or the data say.
        weights: False builds shapes only (on the meta device): no download, no memory.

    Raises:
        UsageError, MismatchError: as `models.build.build`, or it is made for another task.
    """
    if classes is None:
        classes = classes_of(stored, recipe) if stored else class_count(recipe.data)
    image_size = recipe.data.image_size
    if weights:
        base = build_seeded(recipe.model, recipe.seed, classes=classes, image_size=image_size)
    else:
        base = build(recipe.model, classes=classes, image_size=image_size, weights=False)
    task = TASKS[recipe.task].bases or recipe.task
    if task != base.task:
        message = f"{recipe.model.name} is a base for {base.task}, not for {recipe.task}"
        raise UsageError(message, where="task", hint=f"task: {base.task}, or another model.name")
    return base


def classes_of(stored: StoredAdapter, recipe: Recipe) -> int | None:
    """How many classes a stored model tells apart: as the file names them, as its head has rows, or as the data say."""
    if stored.classes or stored.head:
        return len(stored.classes) or next((len(tensor) for tensor in stored.head.values() if tensor.dim()), None)
    return class_count(recipe.data) if recipe.model.head == "new" else None
