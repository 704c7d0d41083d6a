"""The keys of a recipe that the task `diffusion` alone has."""

from __future__ import annotations

from pydantic import Field

from superlora_cli.recipe.schema import Recipe, Section


class DiffusionSection(Section):
    """How the task `diffusion` adds noise."""

    steps: int = Field(1000, ge=2, description="Time steps T from an image to noise.")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="Variance β of the noise that the first step adds.")
    beta_end: float = Field(0.02, gt=0, lt=1, description="And of the last; linear in between.")
    class_dropout: float = Field(
        0.1, ge=0, le=1, description="Part of the images whose class is not told, so that guidance has both."
    )


def settings_of(recipe: Recipe) -> DiffusionSection:
    """The section of a recipe, under the name of its task; the defaults where it has none."""
    found: DiffusionSection | None = getattr(recipe, recipe.task, None)
    return found or DiffusionSection()
