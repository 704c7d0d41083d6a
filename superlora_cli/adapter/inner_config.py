"""The knob `inner`: F_in, which makes the factors from a few trained numbers; and the error for any knob."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from superlora_cli.adapter.kinds import settle
from superlora_cli.errors import UsageError, did_you_mean

FrozenFrom = Literal["random", "svd"]
InnerProjection = Literal["none", "onehot", "dense", "fastfood", "bank"]
Per = Literal["all", "group", "factor"]

MAPS = {"onehot": "onehot", "dense": "dense", "fastfood": "linear"}  # linear F_in → its file in `projections`
VECTORS, TOPK = 16, 2  # of a bank


@dataclass(frozen=True)
class Inner:
    """F_in: `dim` trained numbers θ become all trained entries of {C, A}.

    Attributes:
        projection: `onehot`: every entry is one of the numbers; `dense`: a random matrix; `fastfood`: like F `linear`;
            `bank`: every run of d entries is a mixture of vectors from a bank.
        dim: d, numbers in θ, or in each vector of a bank.
        per: one θ for all groups, for each group, or for each factor of each group.
        vectors: in a bank.
        topk: the number of vectors in a mixture: those with the largest of its trained weights.
    """

    projection: InnerProjection = "onehot"
    dim: int = 64
    per: Per = "all"
    vectors: int | None = None
    topk: int | None = None

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any]) -> Inner | None:
        """F_in from the keys under `inner`; None for `projection: none`.

        Raises:
            UsageError: unknown key or value.
        """
        known = [field.name for field in fields(cls)]
        for name in knobs:
            if name not in known:
                hint = did_you_mean(name, known) or "one of " + ", ".join(known)
                raise UsageError(f"unknown knob '{name}'", where="adapter.inner", hint=hint)
        given = {name: value for name, value in knobs.items() if value is not None}
        if given.get("projection") == "bank":
            given = {"vectors": VECTORS, "topk": TOPK, **given}
        return None if given.get("projection") == "none" else cls(**given)

    def numbers(self, entries: int) -> int:
        """The numbers in a θ that makes so many entries; with a bank, its vectors and the weights of every mixture."""
        return self.dim if self.vectors is None else self.vectors * (self.dim + -(-entries // self.dim))

    @property
    def named(self) -> dict[str, Any]:
        """The keys that are set."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def __post_init__(self) -> None:
        for name, kind in (("projection", InnerProjection), ("per", Per)):
            value, choices = getattr(self, name), get_args(kind)
            if isinstance(value, str) and value not in choices:
                hint = did_you_mean(value, choices) or "one of " + ", ".join(choices)
                raise refuse(f"inner.{name}", f"unknown {name} '{value}'", hint)
        settle(self, "adapter.inner")
        if self.dim < 1:
            raise refuse("inner.dim", f"dim is {self.dim}", "a whole number ≥ 1")
        if self.projection != "bank":
            if (self.vectors, self.topk) != (None, None):
                raise refuse("inner", f"vectors and topk with projection {self.projection}", "projection: bank")
        elif not 1 <= (self.topk or 0) <= (self.vectors or 0):
            raise refuse("inner.topk", f"topk {self.topk} of {self.vectors} vectors", "1 ≤ topk ≤ vectors")
        elif self.per != "all":
            raise refuse("inner.per", f"per {self.per} with projection bank", "per: all")


def on_top(knobs: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """`knobs` overridden by `others`; `inner` is merged key by key.

    >>> on_top({"rank": 2, "inner": {"dim": 8, "per": "all"}}, {"inner": {"dim": 4}})
    {'rank': 2, 'inner': {'dim': 4, 'per': 'all'}}
    """
    both = {**knobs, **others}
    if isinstance(knobs.get("inner"), Mapping) and isinstance(others.get("inner"), Mapping):
        both["inner"] = {**knobs["inner"], **others["inner"]}
    return both


def refuse(knob: str, message: str, hint: str) -> UsageError:
    """The error for a knob of the adapter."""
    return UsageError(message, where=f"adapter.{knob}", hint=hint)
