"""The knobs of Eq. 2, their valid combinations, and their JSON form."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, Literal, get_args

from superlora_cli.adapter.activations import ACTIVATIONS, NONE, Activation
from superlora_cli.adapter.cores import CORES, usual
from superlora_cli.adapter.in_factors import why_not_activated
from superlora_cli.adapter.inner_config import FrozenFrom, Inner, refuse
from superlora_cli.adapter.kinds import plain, settle
from superlora_cli.adapter.multiplied import MULTIPLY
from superlora_cli.adapter.presets import PRESETS as PRESETS
from superlora_cli.adapter.projections import PROJECTIONS
from superlora_cli.errors import UsageError, did_you_mean

Rank = int | tuple[int | Literal["full"], ...]
Combine = Literal["kronecker", "hadamard"]
Left = Literal["dense", "lowrank"]
Fold = Literal["none", "kernel", "regular", "stack"]
Scaling = Literal["alpha_over_rank", "rslora", "alpha", "weights"]
Init = Literal["unit", "lora", "gradient", "activations"]
Execution = Literal["auto", "factored", "materialised"]
Also = Literal["bias", "norm"]

CHOICES: dict[str, Collection[str]] = {
    "core": CORES,
    "combine": get_args(Combine),
    "left": get_args(Left),
    "fold": get_args(Fold),
    "projection": PROJECTIONS,
    "scaling": get_args(Scaling),
    "init": get_args(Init),
    "execution": get_args(Execution),
    "frozen": get_args(FrozenFrom),
    "multiply": MULTIPLY,
    "activation": ACTIVATIONS,
}
RATE = 0.03  # learning rate for AdamW with `scaling: weights` (docs/rates.md)
RATE_ON_LEVELS = 0.1  # the same with `bits` of 1 to 8 (docs/bytes.md)
NEWEST = 3  # version of the defaults: since 2, ΔW is scaled by the base's weights, since 3 more so under some F
ALPHA = 2.0  # with `scaling: weights`
ALPHA_ON_LEVELS = 0.5  # the same with `bits` of 1 to 8: numbers move by whole levels, and larger updates are too coarse
LATER = {"later": True}  # a knob that is written only where it is used, so that other files keep their bytes
NEW = {**LATER, "format": "4"}  # and which readers of older formats do not know
FITTED = {**LATER, "fitted": True}  # not a knob, but given to a finished adapter
BITS = (*range(1, 9), 16)
DEFAULT_RANK = 4


LARGE = 2**20  # far above any useful value
LIMITS = {"order": 64, "splits": 64, "split_dim": LARGE, "terms": LARGE, "align": LARGE, "block": LARGE}


def _levels(bits: int | None) -> bool:
    return bits is not None and bits <= 8


def usual_rate(bits: int | None) -> float:
    """The default learning rate of AdamW, for numbers of `bits` bits or float32."""
    return RATE_ON_LEVELS if _levels(bits) else RATE


@dataclass(frozen=True)
class AdapterConfig:
    """Every knob of an adapter; equal configurations on equal targets are equal adapters.

    `rank` is one int for all modes or a list with one entry per mode, where `full` leaves a mode
    without factor. `core: None` means the order's default: `identity` for M ≤ 2, else `dense`.

    `freeze` names factors that are not trained: `core`, `planes`, `A1` ... `AM`, those of only the `left` or `right`
    unit as `left.A1`, or the whole `left` or `right` unit. `frozen` sets their values: random, shared by all groups of
    a shape, or (`svd`) singular vectors of the group's own base weights. `diagonals` are modes whose plane factor is
    multiplied by a trained diagonal, and `inner` makes all trained entries from a few trained numbers.

    `groups: none` adapts no weight: there are no factors, and the other knobs of ΔW are ignored. `also` selects tensors
    of the base that are trained directly, in addition to the factors: every `bias`, or the parameters of normalisation
    layers (`norm`).

    `multiply` makes ΔW a product with the base's own weight (`adapter.multiplied`): the units then make the other
    factor; `block` is the side of a block of a `rotation`.

    `activation` makes the update of the outputs B σ(A x) in place of B A x (`adapter.activations`): there is no ΔW.

    `bits` is the number of bits of each trained number (`adapter.quantized`). No level is zero, so ΔW is relative to
    that of the quantised start. An adapter quantised after training has `scales`, the spacing of the levels of each
    trained tensor; its ΔW is not relative to anything.

    Raises:
        UsageError: a value or a combination of values that Eq. 2 does not allow.

    >>> AdapterConfig.from_knobs("lorta", rank=2).core_kind
    'dense'
    """

    groups: int | Literal["weight", "layer", "none"] = 1
    order: int = 2
    rank: Rank | None = None
    core: str | None = None
    splits: int = 1
    split_dim: int = 8
    combine: Combine = "kronecker"
    left: Left = "dense"
    terms: int | Literal["full"] = 1
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
    inner: Inner | None = field(default=None, metadata=LATER)
    freeze: tuple[str, ...] = field(default=(), metadata=LATER)
    frozen: FrozenFrom = field(default="random", metadata=LATER)
    diagonals: tuple[int, ...] = field(default=(), metadata=LATER)
    also: tuple[Also, ...] = field(default=(), metadata={**LATER, "format": "2"})
    multiply: str = field(default="none", metadata=NEW)
    block: int = field(default=32, metadata=NEW)
    activation: Activation = field(default=NONE, metadata=NEW)
    bits: int | None = field(default=None, metadata={**LATER, "format": "3"})
    scales: tuple[float, ...] = field(default=(), metadata=FITTED)

    @classmethod
    def knobs(cls) -> list[str]:
        """The names of all that can be asked for."""
        return [each.name for each in fields(cls) if not each.metadata.get("fitted")]

    @classmethod
    def from_knobs(cls, method: str | None = None, /, *, defaults: int = 1, **knobs: Any) -> AdapterConfig:
        """The preset `method`, overridden by `knobs`; None means not given.

        Args:
            defaults: the version of the defaults for knobs not given. From 2 on, `scaling` is `weights` if neither it
                nor `alpha` is given and the factors start at unit scale. From 3 on, `alpha` is then 2/ρ^¼ under a
                linear F with ρ < 1, whose numbers follow the gradient in ρ of all directions (docs/rates.md).
        """
        if method is not None and not (isinstance(method, str) and method in PRESETS):
            hint = did_you_mean(str(method), PRESETS) or "one of " + ", ".join(PRESETS)
            raise UsageError(f"unknown method '{method}'", where="adapter.method", hint=hint)
        known = set(cls.knobs())
        for name in knobs:
            if name not in known:
                raise UsageError(f"unknown knob '{name}'", where="adapter", hint=did_you_mean(name, known))
        given = {name: plain(value) for name, value in knobs.items() if value is not None}
        preset = dict(PRESETS[method].knobs) if method else {}
        if method == "lotr" and isinstance(given.get("rank"), int):  # a single number means LoTR's own form
            given["rank"] = ("full", given["rank"], given["rank"])
        merged = preset | given
        if preset.get("groups") == "none" != merged["groups"]:
            raise refuse("groups", f"groups {merged['groups']} with method {method}", f"{method} adapts no weight")
        if merged.get("groups") == "none":
            merged = {name: value for name, value in merged.items() if name in ("groups", "also", "seed")}
        if isinstance(merged.get("inner"), Mapping):
            merged["inner"] = Inner.from_knobs({**(preset.get("inner") or {}), **merged["inner"]})
        made = cls(**merged)
        unit = made.adapts and made.init != "lora" and made.frozen != "svd"
        own = not {"alpha", "scaling"}.isdisjoint(merged)
        made = replace(made, scaling="weights") if defaults >= 2 and unit and not own else made
        if defaults >= 3 and made.scaling == "weights" and made.alpha is None and made._follows_few_directions:
            made = replace(made, alpha=float(f"{ALPHA / made.ratio**0.25:.2g}"))
        return made

    @classmethod
    def from_json(cls, text: str) -> AdapterConfig:
        """The configuration that `to_json` wrote."""
        knobs = json.loads(text)
        scales = plain(knobs.pop("scales", ()))
        made = cls.from_knobs(None, **knobs)
        return replace(made, scales=scales) if scales else made

    def to_json(self) -> str:
        """The knobs as JSON with sorted keys: the `superlora.config` entry of an adapter file."""
        unused = {f.name for f in fields(self) if f.metadata.get("later") and getattr(self, f.name) == f.default}
        return json.dumps({name: value for name, value in self.named.items() if name not in unused}, sort_keys=True)

    @property
    def named(self) -> dict[str, Any]:
        """All knobs by name, as plain values."""
        return vars(self) | {"inner": self.inner and self.inner.named}

    @property
    def adapts(self) -> bool:
        """Whether there is a ΔW at all."""
        return self.groups != "none"

    @property
    def projects(self) -> bool:
        """Whether there is an F other than the identity."""
        return self.projection != "identity"

    @property
    def multiplies(self) -> bool:
        """Whether ΔW is a product with the base's weights."""
        return MULTIPLY[self.multiply].takes_weight

    @property
    def activates(self) -> bool:
        """Whether the update is nonlinear in the layer's inputs, so that there is no ΔW."""
        return self.activation != NONE

    @property
    def reads_base(self) -> bool:
        """Whether ΔW depends on the base's weights, which are then needed to compute it."""
        return self.multiplies or self.frozen == "svd" or PROJECTIONS[self.projection].CHOOSES == "weights"

    @property
    def places(self) -> bool:
        """Whether numbers are placed by the first gradients, at positions that are stored."""
        return PROJECTIONS[self.projection].CHOOSES == "gradients"

    @property
    def informed(self) -> Literal["", "gradients", "activations"]:
        """What of the first batches the adapter starts from (`adapter.informed`)."""
        if self.init == "activations":
            return "activations"
        return "gradients" if self.init == "gradient" or self.places else ""

    @property
    def _follows_few_directions(self) -> bool:
        """Whether F is linear with ρ < 1, and its numbers are not of a few levels."""
        if self.ratio == 1 or self.has_levels:
            return False
        kind = PROJECTIONS[self.projection]
        return not (kind.SPECTRAL or kind.NONLINEAR)

    @property
    def has_levels(self) -> bool:
        """Whether trained numbers are some of a few levels, none of them zero."""
        return _levels(self.bits)

    @property
    def trained_on_levels(self) -> bool:
        """Whether they were so in training already, and not only when it was over."""
        return self.has_levels and not self.scales

    @property
    def format_version(self) -> str:
        """The oldest version of the adapter file format that supports these knobs."""
        used = [f.metadata.get("format", "1") for f in fields(self) if getattr(self, f.name) != f.default]
        return max(["1" if self.adapts else "2", "4" if self.inner and self.inner.vectors else "1", *used])

    @property
    def core_kind(self) -> str:
        """The core used: the one set, or the order's default."""
        return usual(self.order, self.ranks) if self.core is None else self.core

    @property
    def ranks(self) -> tuple[int | Literal["full"], ...]:
        """One entry per mode, length M. A `full` mode has no factor; M = 1 is the vector itself."""
        if self.order == 1:
            return ("full",)
        if isinstance(self.rank, tuple):
            return self.rank
        return (DEFAULT_RANK if self.rank is None else self.rank,) * self.order

    @property
    def scale_rank(self) -> int:
        """The rank that alpha is divided by: the largest entry of a list, 1 if no mode has a factor."""
        return max((rank for rank in self.ranks if rank != "full"), default=1)

    @property
    def scale(self) -> float:
        """The factor of ΔW, applied after F; alpha defaults to the rank, which makes it 1.

        `scaling: weights` is resolved by `scaling.settled`, which knows the base; until then it counts as 1.
        """
        rank = self.scale_rank
        alpha = float(rank) if self.alpha is None else self.alpha
        kinds = {"alpha_over_rank": alpha / rank, "rslora": alpha / rank**0.5, "alpha": alpha, "weights": 1.0}
        return kinds[self.scaling]

    @property
    def exact_ratio(self) -> Fraction:
        """ρ as the exact decimal: ⌈0.07 · 100⌉ is 7, not 8."""
        return Fraction(repr(self.ratio))

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if isinstance(value, str) and value not in choices:
                hint = did_you_mean(value, choices) or "one of " + ", ".join(choices)
                raise refuse(name, f"unknown {name} '{value}'", hint)
        settle(self, "adapter")
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if value != "full" and value < 1:
                raise refuse(name, f"{name} is {value}", "a whole number ≥ 1")
            if value != "full" and value > most:
                raise refuse(name, f"{name} is {value}", f"at most {most:,}")
        if not isinstance(self.groups, str) and self.groups < 1:
            raise refuse("groups", f"groups is {self.groups}", "a number ≥ 1, weight, layer or none")
        if len(set(self.also)) < len(self.also):
            raise refuse("also", f"also is {list(self.also)}", "bias, norm or both")
        if self.alpha is not None and not 0 < abs(self.alpha) < float("inf"):
            raise refuse("alpha", f"alpha is {self.alpha}", "a finite number other than 0")
        if self.bits is not None and self.bits not in BITS:
            raise refuse("bits", f"bits is {self.bits}", "1 to 8, or 16")
        if self.scales and not (self.has_levels and all(0 < scale < float("inf") for scale in self.scales)):
            raise refuse("scales", f"scales {list(self.scales)} with bits {self.bits}", "numbers > 0, and bits 1 to 8")
        self._check_rank()
        self._check_splits()
        self._check_fold()
        self._check_projection()
        self._check_frozen()
        self._check_init()
        if self.activates and (reason := why_not_activated(self)):
            hint = "method: loda, or activation: identity"
            raise refuse("activation", f"activation {self.activation} needs two factors a weight: {reason}", hint)

    def _check_init(self) -> None:
        """Refuse a start from the first batches where no factor can be found in them, or none can be zero."""
        if self.init not in ("gradient", "activations"):
            return
        unfit = {"order": self.order == 1, "splits": self.splits > 1, "terms": self.terms != 1}
        if self.init == "activations":  # A_2 must have the columns of one weight
            unfit |= {"order": self.order != 2, "groups": self.groups != "weight", "fold": self.fold != "none"}
            unfit |= {"multiply": self.multiplies}
        unfit |= {"projection": self.projects, "inner": self.inner is not None, "bits": self.has_levels}
        for knob, used in unfit.items():
            if used:
                raise refuse("init", f"init {self.init} with {knob} {getattr(self, knob)}", "init: unit")

    def _check_rank(self) -> None:
        if self.order == 1:
            if self.rank not in (None, 1, (1,), ("full",)):
                raise refuse("rank", f"rank {self.rank} with order 1", "order 1 is a plain vector, of rank 1")
            if self.core is not None and CORES[self.core].stored:
                raise refuse("core", f"core '{self.core}' with order 1", "order 1 has no core")
            return
        if isinstance(self.rank, tuple) and len(self.rank) != self.order:
            raise refuse(
                "rank", f"{len(self.rank)} ranks for order {self.order}", f"{self.order} entries, one per mode"
            )
        for rank in self.ranks:
            if rank != "full" and rank < 1:
                raise refuse("rank", f"rank is {rank}", "a whole number ≥ 1, or full")
        if wrong := CORES[self.core_kind].why_not(self.ranks):
            raise refuse("core", *wrong)

    def _check_splits(self) -> None:
        if self.splits == 1:
            if self.terms != 1 and CORES[self.core_kind].absorbs_terms and not (self.freeze or self.diagonals):
                raise refuse("terms", f"terms {self.terms} with splits 1", "a sum of products needs splits ≥ 2")
            if self.combine == "hadamard":
                raise refuse("combine", "hadamard with splits 1", "an elementwise product needs splits ≥ 2")
            if self.left == "lowrank":
                raise refuse("left", "left lowrank with splits 1", "a left factor needs splits ≥ 2")
        elif self.order == 1:
            raise refuse("splits", f"splits {self.splits} with order 1", "splits need order ≥ 2")
        elif self.left == "lowrank" and (self.combine == "hadamard" or not any(r != "full" for r in self.ranks)):
            what = "hadamard" if self.combine == "hadamard" else f"rank {list(self.ranks)}"
            raise refuse("left", f"left lowrank with {what}", "a low-rank left Kronecker factor needs a rank")

    def _check_fold(self) -> None:
        if self.fold in ("none", "kernel") and self.order > 2:
            raise refuse("fold", f"fold {self.fold} with order {self.order}", "fold: regular, or order 2")
        if self.fold == "stack":
            if self.order != 3:
                raise refuse("fold", f"fold stack with order {self.order}", "order 3, for (weights, out, in)")
            if self.projects:
                raise refuse("fold", f"fold stack with projection {self.projection}", "projection: identity")

    def _check_projection(self) -> None:
        if not 0 < self.ratio <= 1:
            raise refuse("ratio", f"ratio is {self.ratio}", "a number in (0, 1]")
        if self.ratio != 1 and PROJECTIONS[self.projection].FULL_SIZE:
            raise refuse(
                "ratio", f"ratio {self.ratio} with projection {self.projection}", "ratio 1, or projection: linear"
            )
        if self.multiplies and PROJECTIONS[self.projection].CHOOSES == "weights":
            what = f"projection {self.projection} with multiply {self.multiply}"
            raise refuse("projection", f"{what}, whose elements are no weights", "projection: sparse")
        small = self.init == "lora" or (self.inner is not None and not self.rescale)
        if small and PROJECTIONS[self.projection].NONLINEAR:
            knob, what = ("init", "init lora") if self.init == "lora" else ("rescale", "rescale false and inner")
            hint = "init: unit, and rescale: true with inner"
            raise refuse(
                knob, f"{what} with projection {self.projection}: its gradient vanishes at such small values", hint
            )

    def freezes(self, k: int, part: str) -> bool:
        """Whether `part` (`core`, `A1`, ...) of unit number k, from 1, is not trained."""
        names = {part, *(["planes"] if part.startswith("A") else [])}
        if self.splits > 1:
            side = "left" if k == 1 else "right"
            names |= {f"{side}.{name}" for name in names} | {side}
        return not names.isdisjoint(self.freeze)

    def _check_frozen(self) -> None:
        """Refuse unknown names of factors, and settings of frozen factors that do not fit together."""
        modes = [m for m, rank in enumerate(self.ranks, 1) if rank != "full"]
        has_core = CORES[self.core_kind].stored or self.splits > 1 or not modes  # a dense left factor is a core
        known = [*(["core"] if has_core else []), *(["planes"] if modes else []), *(f"A{m}" for m in modes)]
        if self.splits > 1:
            known += ["left", "right", *(f"{side}.{part}" for part in known for side in ("left", "right"))]
        for name in self.freeze:
            if name not in known:
                hint = did_you_mean(name, known) or "one of " + ", ".join(known)
                raise refuse("freeze", f"unknown factor '{name}'", hint)
        for mode in self.diagonals:
            if mode not in modes:
                hint = "one of the modes " + ", ".join(map(str, modes)) if modes else "order 2 or more, and a rank"
                raise refuse("diagonals", f"mode {mode} has no factor", hint)
        if len(set(self.diagonals)) < len(self.diagonals):
            raise refuse("diagonals", f"a mode twice in {list(self.diagonals)}", "each mode once")
        if self.frozen == "svd":
            if self.multiplies:
                raise refuse("frozen", f"frozen svd with multiply {self.multiply}", "frozen: random")
            if not any(self.freezes(1, f"A{m}") for m in modes):
                raise refuse("frozen", "frozen svd, but no plane factor is frozen", "freeze: [planes]")
            if self.splits > 1 or self.projects:
                other = f"splits {self.splits}" if self.splits > 1 else f"projection {self.projection}"
                raise refuse("frozen", f"frozen svd with {other}", "splits 1 and projection identity")
