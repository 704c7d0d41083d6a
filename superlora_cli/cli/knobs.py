"""The knobs of an adapter as command-line options, shared by all commands that take them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from typing import Annotated, Any, TypeVar

import typer

from superlora_cli.adapter.config import CHOICES, PRESETS
from superlora_cli.adapter.inner_config import MAPS
from superlora_cli.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., None])


def _words(knob: str) -> str:
    return ", ".join(CHOICES[knob])


OPTIONS: dict[str, Any] = {
    "targets": Annotated[
        str | None,
        typer.Option(help="Weights to adapt, separated by commas: q, k, v, o, mlp, all-linear, or patterns."),
    ],
    "method": Annotated[str | None, typer.Option(help=f"Preset for the knobs below: {', '.join(PRESETS)}.")],
    "groups": Annotated[
        str | None,
        typer.Option(help="Number of groups that all weights are cut into; or one per weight or layer; or none."),
    ],
    "order": Annotated[int | None, typer.Option(help="Order M of the tensor that a group is folded to; 1 is dense.")],
    "rank": Annotated[str | None, typer.Option(help="Rank; or one per mode, e.g. full,4,4 (full: no factor).")],
    "core": Annotated[str | None, typer.Option(help=f"Core tensor: {_words('core')}.")],
    "splits": Annotated[int | None, typer.Option(help="Number K of Kronecker factors per group.")],
    "split_dim": Annotated[int | None, typer.Option(help="Side f of the left Kronecker factor.")],
    "left": Annotated[str | None, typer.Option(help=f"Form of the left Kronecker factor: {_words('left')}.")],
    "terms": Annotated[str | None, typer.Option(help="Number of products to sum; full: enough for full rank.")],
    "combine": Annotated[str | None, typer.Option(help=f"How the splits are combined: {_words('combine')}.")],
    "fold": Annotated[str | None, typer.Option(help=f"Shape that a group is folded to: {_words('fold')}.")],
    "align": Annotated[int | None, typer.Option(help="Round folded sides up to a multiple of this.")],
    "projection": Annotated[str | None, typer.Option(help=f"Fixed projection: {_words('projection')}.")],
    "ratio": Annotated[
        float | None, typer.Option(help="Compression ratio ρ of the projection: its inputs per output.")
    ],
    "inner": Annotated[
        str | None, typer.Option(help=f"F_in, which maps a few numbers θ to the factors: {', '.join(MAPS)}, bank.")
    ],
    "dim": Annotated[int | None, typer.Option(help="Length of θ, the input of F_in; or of a bank's vectors.")],
    "per": Annotated[str | None, typer.Option(help="One θ in all, or one per group or factor.")],
    "vectors": Annotated[int | None, typer.Option(help="Vectors in a bank.")],
    "topk": Annotated[int | None, typer.Option(help="Vectors of the bank in each mixture.")],
    "freeze": Annotated[str | None, typer.Option(help="Factors that are not trained: core, planes, A1, left, …")],
    "frozen": Annotated[str | None, typer.Option(help=f"What frozen factors are: {_words('frozen')}.")],
    "diagonals": Annotated[str | None, typer.Option(help="Modes with a trained diagonal, e.g. 1,2.")],
    "also": Annotated[str | None, typer.Option(help="Tensors of the base to train directly: bias, norm, or both.")],
    "multiply": Annotated[
        str | None, typer.Option(help=f"ΔW as a product with the base's weight: {_words('multiply')}.")
    ],
    "block": Annotated[int | None, typer.Option(help="Side of the blocks of a rotation; default: 32.")],
    "activation": Annotated[
        str | None, typer.Option(help=f"σ of a nonlinear update B σ(A x): {_words('activation')}.")
    ],
    "bits": Annotated[int | None, typer.Option(help="Bits of each trained number: 1 to 8, or 16; default: float32.")],
}
INNER = {"projection": "inner"} | {name: name for name in ("dim", "per", "vectors", "topk")}  # key of `inner` → option


def takes_knobs(command: Command) -> Command:
    """Give a command that takes `**options` the options in `OPTIONS`, after its own option `model` or `partial`.

    Without a `model` the weights to adapt are given by something else than an option.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind != Parameter.VAR_KEYWORD]
    names = [parameter.name for parameter in own]
    knobs = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=kind)
        for name, kind in OPTIONS.items()
        if name != "targets" or "model" in names
    ]
    place = names.index("model" if "model" in names else "partial") + 1
    command.__signature__ = signature.replace(parameters=[*own[:place], *knobs, *own[place:]])  # type: ignore[attr-defined]
    return command


def given(**options: Any) -> dict[str, Any]:
    """The knobs set by options, as `AdapterConfig.from_knobs` takes them; an option that is None was not given.

    Raises:
        UsageError: an option that should be a number or a list of numbers is not.

    >>> given(method="vera", rank="3", dim=None, per="group", diagonals="1,2", freeze=None)
    {'method': 'vera', 'rank': 3, 'diagonals': (1, 2), 'inner': {'per': 'group'}}
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, read in READ.items():
        if name in given:
            given[name] = read(given[name])
    if inner := {key: given.pop(option) for key, option in INNER.items() if option in given}:
        given["inner"] = inner
    return given


@contextmanager
def located(flags: Mapping[str, Any], recipe: str | None) -> Iterator[None]:
    """Make an error name the option or the recipe key that caused it."""
    try:
        yield
    except UsageError as error:
        section, _, rest = (error.where or "").partition(".")
        key, _, detail = rest.partition(": ")
        inner, _, own = key.partition(".")
        option = INNER.get(own, inner) if inner == "inner" else key
        option, inner = ("model", "model") if section == "model" else (option, inner)
        if section in ("adapter", "model"):
            option = f"--{option.replace('_', '-')}" + (f": {detail}" if detail else "")
            error.where = option if recipe is None or inner in flags else f"{recipe}: {section}.{rest}"
        raise


def split_patterns(text: str) -> list[str]:
    """Split at commas, except those in brackets.

    >>> split_patterns("q, re:blocks\\\\.[0,1]\\\\.attn\\\\.qkv[v]")
    ['q', 're:blocks\\\\.[0,1]\\\\.attn\\\\.qkv[v]']
    """
    return [part.strip() for part in re.split(r",(?![^\[({]*[\])}])", text) if part.strip()]


def _groups(text: str) -> int | str:
    """The value of --groups: a number, or a word that the knob's own check judges."""
    return int(text) if text.strip().isdecimal() else text


def _rank(text: str) -> Any:
    """The value of --rank: a number, or a tuple of numbers and `full`.

    Raises:
        UsageError: it is neither.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part != "full" and not part.isdecimal():
            raise UsageError(
                f"'{part}' is not a rank", where="--rank", hint="a whole number, or one per mode: full,4,4"
            )
    ranks = tuple("full" if part == "full" else int(part) for part in parts)
    return ranks[0] if len(ranks) == 1 and ranks != ("full",) else ranks


def _modes(text: str) -> tuple[int, ...]:
    """`1,2` → (1, 2)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"'{text}' is not a list of modes", where="--diagonals", hint="numbers from 1, e.g. 1,2")
    return tuple(int(part) for part in parts)


def _terms(text: str) -> int | str:
    """A number, or `full`."""
    if text == "full":
        return text
    if not text.strip().lstrip("-").isdecimal():
        raise UsageError(f"'{text}' is not a number of terms", where="--terms", hint="a whole number, or full")
    return int(text)


READ: dict[str, Callable[[str], Any]] = {
    "groups": _groups,
    "rank": _rank,
    "terms": _terms,
    "freeze": lambda text: tuple(split_patterns(text)),
    "diagonals": _modes,
    "also": lambda text: tuple(split_patterns(text)),
}  # option → its value from the text
