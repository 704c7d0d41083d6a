"""What is trained of {C, A}, and from how many numbers: the knobs `inner`, `freeze`, `frozen`, `diagonals`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.kinds import settle
from superlora_cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from superlora_cli.adapter.config import AdapterConfig

FrozenFrom = Literal["random", "svd"]
InnerProjection = Literal["none", "onehot", "dense", "fastfood"]
Per = Literal["all", "group", "factor"]

MAPS = {"onehot": "onehot", "dense": "dense", "fastfood": "linear"}  # F_in → the file in `projections` that makes it


@dataclass(frozen=True)
class Inner:
    """F_in: `dim` trained numbers θ become all trained entries of {C, A}.

    Attributes:
        projection: `onehot`: every entry is one of the numbers; `dense`: a random matrix; `fastfood`: as F `linear`.
        dim: d, numbers in θ.
        per: whether there is one θ for all groups, one for each group, or one for each factor of each group.
    """

    projection: InnerProjection = "onehot"
    dim: int = 64
    per: Per = "all"

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any]) -> Inner | None:
        """The keys under `inner`; `projection: none` is no F_in.

        Raises:
            UsageError: on a key or a value that there is not.
        """
        known = [field.name for field in fields(cls)]
        for name in knobs:
            if name not in known:
                hint = did_you_mean(name, known) or "one of " + ", ".join(known)
                raise UsageError(f"unknown knob '{name}'", where="adapter.inner", hint=hint)
        given = {name: value for name, value in knobs.items() if value is not None}
        return None if given.get("projection") == "none" else cls(**given)

    def __post_init__(self) -> None:
        for name, kind in (("projection", InnerProjection), ("per", Per)):
            value, choices = getattr(self, name), get_args(kind)
            if isinstance(value, str) and value not in choices:
                hint = did_you_mean(value, choices) or "one of " + ", ".join(choices)
                raise refuse(f"inner.{name}", f"unknown {name} '{value}'", hint)
        settle(self, "adapter.inner")
        if self.dim < 1:
            raise refuse("inner.dim", f"dim is {self.dim}", "a whole number ≥ 1")


def on_top(knobs: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """`knobs` with `others` in their place; of `inner` key by key.

    >>> on_top({"rank": 2, "inner": {"dim": 8, "per": "all"}}, {"inner": {"dim": 4}})
    {'rank': 2, 'inner': {'dim': 4, 'per': 'all'}}
    """
    both = {**knobs, **others}
    if isinstance(knobs.get("inner"), Mapping) and isinstance(others.get("inner"), Mapping):
        both["inner"] = {**knobs["inner"], **others["inner"]}
    return both


def is_frozen(config: AdapterConfig, k: int, part: str) -> bool:
    """Whether `part` (`core`, `A1`, ...) of unit number k, from 1, is not trained."""
    names = {part, *(["planes"] if part.startswith("A") else [])}
    if config.splits > 1:
        side = "left" if k == 1 else "right"
        names |= {f"{side}.{name}" for name in names} | {side}
    return not names.isdisjoint(config.freeze)


def check_frozen(config: AdapterConfig) -> None:
    """Refuse names of factors that there are not, and what nothing would be left to train of.

    Raises:
        UsageError: names the knob.
    """
    modes = [m for m, rank in enumerate(config.ranks, 1) if rank != "full"]
    has_core = CORES[config.core_kind].stored or config.splits > 1 or not modes  # a dense left factor is a core
    known = [*(["core"] if has_core else []), *(["planes"] if modes else []), *(f"A{m}" for m in modes)]
    if config.splits > 1:
        known += ["left", "right", *(f"{side}.{part}" for part in known for side in ("left", "right"))]
    for name in config.freeze:
        if name not in known:
            hint = did_you_mean(name, known) or "one of " + ", ".join(known)
            raise refuse("freeze", f"there is no factor '{name}'", hint)
    for mode in config.diagonals:
        if mode not in modes:
            hint = "one of the modes " + ", ".join(map(str, modes)) if modes else "order 2 or more, and a rank"
            raise refuse("diagonals", f"mode {mode} has no factor", hint)
    if len(set(config.diagonals)) < len(config.diagonals):
        raise refuse("diagonals", f"a mode twice in {list(config.diagonals)}", "each mode once")
    if config.frozen == "svd":
        if not any(is_frozen(config, 1, f"A{m}") for m in modes):
            raise refuse("frozen", "frozen svd, and no plane factor is frozen", "freeze: [planes]")
        if config.splits > 1 or config.projection != "identity":
            other = f"splits {config.splits}" if config.splits > 1 else f"projection {config.projection}"
            raise refuse("frozen", f"frozen svd with {other}", "splits 1 and projection identity")


def refuse(knob: str, message: str, hint: str) -> UsageError:
    """The error about a knob of the adapter."""
    return UsageError(message, where=f"adapter.{knob}", hint=hint)
