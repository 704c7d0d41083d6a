"""Every key of a sweep file: its type, its default and what it does."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from superlora_cli.recipe.schema import Section

FEWEST = 24  # images that every metric can do with; MSID is the most demanding
Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]


class Measure(Section):
    """How the images of diffusion runs are measured, as by `superlora eval RUN --against`."""

    against: str = Field(min_length=1, description="Real images: `digits:test`, `torch/mnist:test`, or a folder.")
    extractor: Literal["inception", "digits"] = Field("inception", description="Of the features that are compared.")
    weights: str | None = Field(None, description="File of Inception's weights; default: torch hub's cache.")
    num: int = Field(1000, ge=FEWEST, description="Images that each run makes.")
    sampler: Literal["ddpm", "ddim", "dpm++"] = Field("ddim", description="From noise to image.")
    steps: int | None = Field(None, ge=1, description="Steps of the sampler; default: ddpm all, ddim 50, dpm++ 25.")
    guidance: float | None = Field(None, ge=0, description="Weight of the class; default 1.8.")
    seed: int | None = Field(None, ge=0, description="Seed of the images; default: the run's.")


class Entry(Section):
    """Further runs; every other key is a recipe's, by its dotted path, and its value."""

    model_config = ConfigDict(extra="allow")

    recipe: str | None = Field(None, min_length=1, description="Recipe of these runs; default: the sweep's.")
    grid: Grid | None = Field(None, min_length=1, description="As the sweep's, for these runs.")


class Sweep(Section):
    """A sweep of superlora: many runs."""

    recipe: str | None = Field(
        None,
        min_length=1,
        description="Shipped recipe, or a path relative to the sweep file, that the runs start from.",
    )
    set: dict[str, Any] = Field({}, description="Recipe keys by their dotted path, and values, for all runs.")
    grid: Grid | None = Field(
        None, min_length=1, description="Recipe keys and lists of values: a run for every combination."
    )
    runs: list[Entry] | None = Field(None, min_length=1, description="Further runs, beside those of the grid.")
    seeds: list[int] | None = Field(
        None, min_length=1, description="Each run is repeated with each of these seeds; default: the recipe's."
    )
    measure: Measure | None = Field(None, description="Measure what diffusion runs generate.")
    skip_impossible: bool = Field(
        False, description="Leave out impossible combinations, such as a rank larger than a side, instead of refusing."
    )
