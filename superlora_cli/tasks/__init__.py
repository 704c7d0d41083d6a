"""The tasks, by the name that `task:` has in a recipe. Listing them imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from superlora_cli.table import Later, Table
from superlora_cli.tasks.task import TaskKind

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import Recipe
    from superlora_cli.tasks.images import ImageTask
    from superlora_cli.tasks.work import Work


def _classification() -> TaskKind:
    from superlora_cli.tasks.classification import ClassificationKind

    return ClassificationKind()


def _diffusion() -> TaskKind:
    from superlora_cli.tasks.diffusion import DiffusionKind

    return DiffusionKind()


def _text_to_image() -> TaskKind:
    from superlora_cli.tasks.text_to_image import TextToImageKind

    return TextToImageKind()


def _autoencoder() -> TaskKind:
    from superlora_cli.tasks.autoencoder import AutoencoderKind

    return AutoencoderKind()


def _language() -> TaskKind:
    from superlora_cli.tasks.language import LanguageKind

    return LanguageKind()


TASKS: Table[TaskKind] = Table(
    "task",
    {
        "classification": Later(_classification),
        "diffusion": Later(_diffusion),
        "text-to-image": Later(_text_to_image),
        "autoencoder": Later(_autoencoder),
        "language": Later(_language),
    },
)


def task_of(recipe: Recipe) -> type[Work]:
    """The class that trains and evaluates a recipe."""
    return TASKS[recipe.task].at_work(recipe)


def image_task_of(recipe: Recipe) -> type[ImageTask]:
    """The same, of a recipe whose task is on images."""
    return cast("type[ImageTask]", task_of(recipe))
