"""Every key of a sweep file: its type, its default and what it does."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from superlora_cli.recipe.schema import Section

FEWEST = 24  # images that are enough for every metric; MSID needs the most
Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]


class Measure(Section):
    """How the images of diffusion runs are measured, as by `superlora eval RUN --against`."""

    against: str = Field(min_length=1, description="Real images: `digits:test`, `torch/mnist:test`, or a folder.")
    extractor: Literal["inception", "digits"] = Field("inception", description="Network whose features are compared.")
    weights: str | None = Field(None, description="File with Inception's weights; default: torch hub's cache.")
    num: int = Field(1000, ge=FEWEST, description="Number of images that each run generates.")
    sampler: Literal["ddpm", "ddim", "dpm++"] = Field("ddim", description="Sampler.")
    steps: int | None = Field(
        None, ge=1, description="Sampling steps; default: all for ddpm, 50 for ddim, 25 for dpm++."
    )
    guidance: float | None = Field(None, ge=0, description="Guidance weight; default 1.8.")
    seed: int | None = Field(None, ge=0, description="Seed of the images; default: the run's.")


class Entry(Section):
    """Further runs; every other key is a recipe key, as a dotted path."""

    model_config = ConfigDict(extra="allow")

    recipe: str | None = Field(None, min_length=1, description="Recipe of these runs; default: the sweep's.")
    grid: Grid | None = Field(None, min_length=1, description="As in the sweep, for these runs.")


class Sweep(Section):
    """A superlora sweep: many runs."""

    recipe: str | None = Field(
        None,
        min_length=1,
        description="Recipe that the runs start from: a shipped one, or a path relative to the sweep file.",
    )
    set: dict[str, Any] = Field({}, description="Recipe keys (dotted paths) and values for all runs.")
    grid: Grid | None = Field(
        None, min_length=1, description="Recipe keys and lists of values: one run per combination."
    )
    runs: list[Entry] | None = Field(None, min_length=1, description="Further runs, in addition to the grid.")
    seeds: list[int] | None = Field(
        None, min_length=1, description="Each run is repeated with each of these seeds; default: the recipe's."
    )
    measure: Measure | None = Field(None, description="Measure the images of diffusion runs.")
    skip_impossible: bool = Field(
        False, description="Leave out impossible combinations, such as a rank larger than a side, instead of refusing."
    )
