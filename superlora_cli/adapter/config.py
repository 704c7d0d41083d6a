"""The knobs of Eq. 2, what they may be together, and the presets that set them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any, Literal, get_args

from superlora_cli.adapter.projections import FULL_SIZE
from superlora_cli.adapter.projections import NAMES as PROJECTIONS
from superlora_cli.errors import UsageError, did_you_mean

Rank = int | tuple[int | Literal["full"], ...]
Core = Literal["identity", "diagonal", "dense"]
Combine = Literal["kronecker", "hadamard"]
Left = Literal["dense", "lowrank"]
Fold = Literal["none", "regular", "stack"]
Scaling = Literal["alpha_over_rank", "rslora", "alpha"]
Init = Literal["unit", "lora"]
Execution = Literal["auto", "factored", "materialised"]

CHOICES: dict[str, tuple[str, ...]] = {
    "core": get_args(Core),
    "combine": get_args(Combine),
    "left": get_args(Left),
    "fold": get_args(Fold),
    "projection": PROJECTIONS,
    "scaling": get_args(Scaling),
    "init": get_args(Init),
    "execution": get_args(Execution),
}

DEFAULT_RANK = 4


@dataclass(frozen=True)
class Preset:
    """A method's name for a setting of the knobs (Table 1), and its equation for people."""

    knobs: Mapping[str, Any]
    formula: str
    source: str


PRESETS: dict[str, Preset] = {
    "dense": Preset({"groups": "weight", "order": 1}, "ΔW_i = A_i", "Table 1, dense FT"),
    "lora": Preset({"groups": "weight", "order": 2, "fold": "none"}, "ΔW_i = A_i1 A_i2ᵀ", "Table 1, LoRA"),
    "lokr": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "splits": 2, "split_dim": 8},
        "ΔW_i = C_i ⊗ (A_i1 A_i2ᵀ)",
        "Table 1, LoKr; Fig. 3b",
    ),
    "lonkr": Preset(
        {"groups": 1, "order": 2, "fold": "regular", "splits": 3, "split_dim": 6},
        "ΔW_g = C_g ⊗ (A_g21 A_g22ᵀ) ⊗ (A_g31 A_g32ᵀ)",
        "Table 1, LoNKr; Fig. 3c",
    ),
    "krona": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "splits": 2, "split_dim": 8, "rank": ("full", "full")},
        "ΔW_i = C_i1 ⊗ C_i2",
        "Section 2, KronA",
    ),
    "loha": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "splits": 2, "combine": "hadamard"},
        "ΔW_i = (A_i11 A_i12ᵀ) ⊙ (A_i21 A_i22ᵀ)",
        "Section 2, LoHA",
    ),
    "lotr": Preset(
        {"groups": 1, "order": 3, "fold": "stack", "rank": ("full", 4, 4)},
        "ΔW = C ×_2 A_2 ×_3 A_3, weights stacked along mode 1",
        "Table 1, LoTR",
    ),
    "lorta": Preset(
        {"groups": 1, "order": 3, "fold": "regular", "core": "dense"},
        "ΔW_g = C_g ×_1 A_g1 ... ×_M A_gM",
        "Table 1, LoRTA; Eq. 3",
    ),
}


@dataclass(frozen=True)
class AdapterConfig:
    """Every knob of an adapter; equal configurations on equal targets are equal adapters.

    `rank` is one int for all modes or a list with one entry per mode, where `full` leaves a mode
    without factor. `core` None means the order's default: `identity` for M ≤ 2, else `dense`.

    Raises:
        UsageError: on a value, or on values together, that Eq. 2 does not allow.

    >>> AdapterConfig.from_knobs("lorta", rank=2).core_kind
    'dense'
    """

    groups: int | Literal["weight", "layer"] = 1
    order: int = 2
    rank: Rank | None = None
    core: Core | None = None
    splits: int = 1
    split_dim: int = 8
    combine: Combine = "kronecker"
    left: Left = "dense"
    terms: int = 1
    fold: Fold = "regular"
    align: int = 1
    projection: str = "identity"
    ratio: float = 1.0
    rescale: bool = True
    alpha: float | None = None
    scaling: Scaling = "alpha_over_rank"
    init: Init = "unit"
    execution: Execution = "auto"
    seed: int = 0

    @classmethod
    def from_knobs(cls, method: str | None = None, /, **knobs: Any) -> AdapterConfig:
        """The preset `method` with `knobs` on top; a knob that is None is one not given."""
        if method is not None and method not in PRESETS:
            hint = did_you_mean(method, PRESETS) or "one of " + ", ".join(PRESETS)
            raise UsageError(f"unknown method '{method}'", where="adapter.method", hint=hint)
        known = {field.name for field in fields(cls)}
        for name in knobs:
            if name not in known:
                raise UsageError(f"unknown knob '{name}'", where="adapter", hint=did_you_mean(name, known))
        given = {name: value for name, value in knobs.items() if value is not None}
        preset = dict(PRESETS[method].knobs) if method else {}
        if method == "lotr" and isinstance(given.get("rank"), int):  # one number means LoTR's own form
            given["rank"] = ("full", given["rank"], given["rank"])
        merged = preset | given
        if isinstance(merged.get("rank"), list):
            merged["rank"] = tuple(merged["rank"])
        return cls(**merged)

    @classmethod
    def from_json(cls, text: str) -> AdapterConfig:
        """The configuration that `to_json` wrote."""
        return cls.from_knobs(None, **json.loads(text))

    def to_json(self) -> str:
        """All knobs as JSON with sorted keys: the `superlora.config` entry of an adapter file."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def core_kind(self) -> Core:
        """The core in force: the one asked for, or the order's default."""
        if self.core is not None:
            return self.core
        return "dense" if self.order >= 3 or "full" in self.ranks else "identity"

    @property
    def ranks(self) -> tuple[int | Literal["full"], ...]:
        """One entry per mode, length M. Mode `full` has no factor; M = 1 is the vector itself."""
        if self.order == 1:
            return ("full",)
        if isinstance(self.rank, tuple):
            return self.rank
        return (DEFAULT_RANK if self.rank is None else self.rank,) * self.order

    @property
    def scale_rank(self) -> int:
        """The rank that alpha is divided by: a list's largest entry, 1 where no mode has a factor."""
        return max((rank for rank in self.ranks if rank != "full"), default=1)

    @property
    def scale(self) -> float:
        """What ΔW is multiplied by, after F; alpha defaults to the rank, which makes it 1."""
        rank = self.scale_rank
        alpha = float(rank) if self.alpha is None else self.alpha
        return {"alpha_over_rank": alpha / rank, "rslora": alpha / rank**0.5, "alpha": alpha}[self.scaling]

    @property
    def exact_ratio(self) -> Fraction:
        """ρ as the decimal that was written: 0.07 · 100 is 7, not 8."""
        return Fraction(repr(self.ratio))

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (name == "core" and value is None):
                hint = did_you_mean(str(value), choices) or "one of " + ", ".join(choices)
                raise _refuse(name, f"unknown {name} '{value}'", hint)
        for name in ("order", "splits", "split_dim", "terms", "align"):
            if getattr(self, name) < 1:
                raise _refuse(name, f"{name} is {getattr(self, name)}", "a whole number ≥ 1")
        if isinstance(self.groups, str):
            if self.groups not in ("weight", "layer"):
                raise _refuse("groups", f"unknown grouping '{self.groups}'", "a number ≥ 1, weight or layer")
        elif self.groups < 1:
            raise _refuse("groups", f"groups is {self.groups}", "a number ≥ 1, weight or layer")
        if self.alpha is not None and not 0 < abs(self.alpha) < float("inf"):
            raise _refuse("alpha", f"alpha is {self.alpha}", "a finite number other than 0")
        self._check_rank()
        self._check_splits()
        self._check_fold()
        self._check_projection()

    def _check_rank(self) -> None:
        if self.order == 1:
            if self.rank not in (None, 1, (1,), ("full",)):
                raise _refuse("rank", f"rank {self.rank} with order 1", "order 1 is a plain vector: its rank is 1")
            if self.core not in (None, "identity"):
                raise _refuse("core", f"core '{self.core}' with order 1", "order 1 has no core")
            return
        if isinstance(self.rank, tuple) and len(self.rank) != self.order:
            raise _refuse("rank", f"{len(self.rank)} ranks for order {self.order}", f"{self.order} entries, one a mode")
        for rank in self.ranks:
            if rank != "full" and rank < 1:
                raise _refuse("rank", f"rank is {rank}", "a whole number ≥ 1, or full")
        if self.core_kind != "dense":
            if "full" in self.ranks:
                raise _refuse("core", f"core '{self.core}' with a full mode", "a mode without factor needs core: dense")
            if len(set(self.ranks)) > 1:
                raise _refuse(
                    "core", f"a core '{self.core_kind}' with ranks {list(self.ranks)}", "equal ranks, or dense"
                )

    def _check_splits(self) -> None:
        if self.splits == 1:
            if self.terms > 1:
                raise _refuse("terms", f"terms {self.terms} with splits 1", "a sum of products needs splits ≥ 2")
            if self.combine == "hadamard":
                raise _refuse("combine", "hadamard with splits 1", "an elementwise product needs splits ≥ 2")
            if self.left == "lowrank":
                raise _refuse("left", "left lowrank with splits 1", "a left factor needs splits ≥ 2")
        elif self.order == 1:
            raise _refuse("splits", f"splits {self.splits} with order 1", "splits need order ≥ 2")
        elif self.left == "lowrank" and (self.combine == "hadamard" or not any(r != "full" for r in self.ranks)):
            what = "hadamard" if self.combine == "hadamard" else f"rank {list(self.ranks)}"
            raise _refuse("left", f"left lowrank with {what}", "a low-rank left Kronecker factor needs a rank")

    def _check_fold(self) -> None:
        if self.fold == "none" and self.order > 2:
            raise _refuse("fold", f"fold none with order {self.order}", "fold: regular, or order 2")
        if self.fold == "stack":
            if self.order != 3:
                raise _refuse("fold", f"fold stack with order {self.order}", "order 3: (weights, out, in)")
            if self.projection != "identity":
                raise _refuse("fold", f"fold stack with projection {self.projection}", "projection: identity")

    def _check_projection(self) -> None:
        if not 0 < self.ratio <= 1:
            raise _refuse("ratio", f"ratio is {self.ratio}", "a number in (0, 1]")
        if self.ratio != 1 and self.projection in FULL_SIZE:
            raise _refuse(
                "ratio", f"ratio {self.ratio} with projection {self.projection}", "ratio 1, or projection: linear"
            )


def _refuse(knob: str, message: str, hint: str) -> UsageError:
    return UsageError(message, where=f"adapter.{knob}", hint=hint)
