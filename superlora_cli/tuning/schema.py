"""Every key of a search space: its type, its default and what it does."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from superlora_cli.recipe.schema import Section

Choices = Annotated[list[Any], Field(min_length=1)]


class Range(Section):
    """Numbers from `low` to `high`."""

    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    log: bool = Field(False, description="Draw from the logarithm of the range.")


class Space(Section):
    """A search space of `superlora tune`."""

    forms: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="Forms of the adapter: its knobs, by a name. A list is a choice. The rank, or `inner.dim` with an "
        "F_in, is the largest within the budget where it is left out.",
    )
    ranges: dict[str, Range | Choices] = Field(
        {}, description="Recipe keys (dotted paths) and their values: a list of choices, or `{low, high, log}`."
    )
    trials: list[dict[str, Any]] = Field(
        [], description="Settings to try first: `form` (as `--dry-run` lists them) and the keys of `ranges`."
    )
