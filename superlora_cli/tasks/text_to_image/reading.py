"""The images and captions of a recipe of the task `text-to-image`."""

from __future__ import annotations

from superlora_cli.data.captioned import Captioned, held_out
from superlora_cli.data.known import kind_named
from superlora_cli.data.splits import DATA_SEED, Splits
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import DataSection, Recipe
from superlora_cli.tasks.text_to_image.section import TextToImageSection

SIZE = 64  # of images that are not looked at


def read_captioned(recipe: Recipe, size: int) -> Splits:
    """The three splits; `size` is that of images that are drawn, in pixels."""
    data = recipe.data
    return held_out(kind_named(data.name).captioned(data, size, seed=DATA_SEED), data.validation, data.split, DATA_SEED)


def read_prior(recipe: Recipe, size: int) -> Captioned | None:
    """The images that preserve what the model knows; None if the recipe has none.

    Raises:
        UsageError: they cannot be read.
    """
    prior = recipe.section(TextToImageSection).prior
    if prior is None:
        return None
    section = DataSection(name=prior.images, caption=prior.caption)
    try:
        return kind_named(prior.images).captioned(section, size, seed=DATA_SEED)
    except UsageError as error:
        error.where = f"text-to-image.prior: {error.where}"
        raise


def captions_of(recipe: Recipe, split: str) -> list[str]:
    """The captions of a split, one for every image, in order."""
    return list(read_captioned(recipe, recipe.data.image_size or SIZE).named(split).texts)  # type: ignore[attr-defined]
