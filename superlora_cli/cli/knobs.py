"""The knobs of an adapter as options, the same for every command that takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from superlora_cli.adapter.config import CHOICES, PRESETS
from superlora_cli.errors import UsageError


def _words(knob: str) -> str:
    return ", ".join(CHOICES[knob])


Targets = Annotated[
    str | None, typer.Option(help="Weights to adapt, separated by commas: q, k, v, o, mlp, all-linear or patterns.")
]
Method = Annotated[str | None, typer.Option(help=f"Preset of the knobs below: {', '.join(PRESETS)}.")]
Groups = Annotated[
    str | None, typer.Option(help="Groups that all weights together are cut into; or weight, layer: one per each.")
]
Order = Annotated[int | None, typer.Option(help="Order M of the tensor a group is folded to; 1 is dense.")]
Rank = Annotated[str | None, typer.Option(help="Rank; or one per mode, as full,4,4 (full: no factor).")]
Core = Annotated[str | None, typer.Option(help=f"Core tensor: {_words('core')}.")]
Splits = Annotated[int | None, typer.Option(help="Kronecker factors K of a group.")]
SplitDim = Annotated[int | None, typer.Option(help="Side f of the left Kronecker factor.")]
Left = Annotated[str | None, typer.Option(help=f"Form of the left Kronecker factor: {_words('left')}.")]
Terms = Annotated[int | None, typer.Option(help="Kronecker products that are summed.")]
Combine = Annotated[str | None, typer.Option(help=f"How the splits combine: {_words('combine')}.")]
Fold = Annotated[str | None, typer.Option(help=f"Shape a group is folded to: {_words('fold')}.")]
Align = Annotated[int | None, typer.Option(help="Round folded sides up to a multiple of this.")]
Projection = Annotated[str | None, typer.Option(help=f"Fixed projection: {_words('projection')}.")]
Ratio = Annotated[float | None, typer.Option(help="Share ρ of the elements that enter the projection.")]


@contextmanager
def located(flags: Mapping[str, Any], recipe: str | None) -> Iterator[None]:
    """Say of an error whether the option or the key of the recipe is to blame."""
    try:
        yield
    except UsageError as error:
        section, _, rest = (error.where or "").partition(".")
        key, _, detail = rest.partition(": ")
        key = "model" if section == "model" else key
        if section in ("adapter", "model"):
            option = f"--{key.replace('_', '-')}" + (f": {detail}" if detail else "")
            error.where = option if recipe is None or key in flags else f"{recipe}: {section}.{rest}"
        raise


def split_patterns(text: str) -> list[str]:
    """The patterns between commas, but for the commas in brackets.

    >>> split_patterns("q, re:blocks\\\\.[0,1]\\\\.attn\\\\.qkv[v]")
    ['q', 're:blocks\\\\.[0,1]\\\\.attn\\\\.qkv[v]']
    """
    return [part.strip() for part in re.split(r",(?![^\[({]*[\])}])", text) if part.strip()]


def groups_of(text: str | None) -> int | str | None:
    """The value of --groups: a number, or a word for the knob to judge."""
    return int(text) if text is not None and text.strip().isdecimal() else text


def rank_of(text: str | None) -> Any:
    """The value of --rank: a number, or a tuple of numbers and `full`.

    Raises:
        UsageError: neither.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part != "full" and not part.isdecimal():
            raise UsageError(f"'{part}' is no rank", where="--rank", hint="a whole number, or one per mode as full,4,4")
    ranks = tuple("full" if part == "full" else int(part) for part in parts)
    return ranks[0] if len(ranks) == 1 and ranks != ("full",) else ranks
