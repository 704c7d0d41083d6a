"""From targets to groups to units: every shape of an adapter, in integers only.

`plan(config, targets)` is the one description of an adapter's shapes. Counting sums it, the factors are
allocated from it, and the updates ΔW are assembled by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from superlora_cli.adapter.config import AdapterConfig, Core
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.errors import UsageError


@dataclass(frozen=True)
class UnitShape:
    """One tensor C ×_1 A_1 ... ×_M A_M: its sides (d_1, ..., d_M) and ranks (r_1, ..., r_M).

    A rank of 0 marks a mode without factor (the core carries that side in full).

    >>> UnitShape(sides=(153, 153, 153), ranks=(4, 4, 4), core="dense").tensors
    {'core': (4, 4, 4), 'A1': (153, 4), 'A2': (153, 4), 'A3': (153, 4)}
    """

    sides: tuple[int, ...]
    ranks: tuple[int, ...]
    core: Core

    @property
    def elements(self) -> int:
        """d_1 · ... · d_M."""
        return math.prod(self.sides)

    @property
    def is_dense(self) -> bool:
        """No mode has a factor: the unit is its core."""
        return not any(self.ranks)

    @property
    def core_shape(self) -> tuple[int, ...]:
        """Shape of the stored core, () where nothing is stored (the superdiagonal of ones)."""
        if self.core == "identity":
            return ()
        if self.core == "diagonal":
            return self.ranks[:1]
        return tuple(rank or side for rank, side in zip(self.ranks, self.sides, strict=True))

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The trained tensors by name: `core`, and the plane factors `A1` ... `AM` of shape (d_m, r_m)."""
        core = {"core": self.core_shape} if self.core_shape else {}
        planes = {f"A{m}": (d, r) for m, (d, r) in enumerate(zip(self.sides, self.ranks, strict=True), 1) if r}
        return core | planes

    @property
    def core_params(self) -> int:
        """Parameters in the core of a factored unit; a dense unit's own elements are no core."""
        return 0 if self.is_dense or not self.core_shape else math.prod(self.core_shape)

    @property
    def params(self) -> int:
        """Trained parameters: Σ r·d over the modes, plus the core's."""
        return sum(math.prod(shape) for shape in self.tensors.values())


@dataclass(frozen=True)
class GroupShape:
    """What one group is made of: K units (left first), summed over `terms`, cropped, projected.

    Attributes:
        units: the K units of one term.
        terms: number of products that are summed.
        sides: the folded shape.
        crop: whether a Kronecker product larger than `sides` is cropped axis by axis, or flattened as it is.
        n_in: elements that enter F: the first ones of the flattened, cropped tensor.
        n_out: elements that leave F.
    """

    units: tuple[UnitShape, ...]
    terms: int
    sides: tuple[int, ...]
    crop: bool
    n_in: int
    n_out: int

    @property
    def extent(self) -> tuple[int, ...]:
        """The shape whose first n_in elements are the group's: `sides`, or that of an uncropped Kronecker product."""
        product = (math.prod(own) for own in zip(*(unit.sides for unit in self.units), strict=True))
        return self.sides if self.crop or self.units[-1].sides == self.sides else tuple(product)

    @property
    def params(self) -> int:
        """Trained parameters of one group."""
        return self.terms * sum(unit.params for unit in self.units)


@dataclass(frozen=True)
class Bucket:
    """Groups of equal shape: one batched tensor per factor, (groups, terms, ...)."""

    shape: GroupShape
    members: tuple[int, ...]  # indices of the groups, in order

    def tensors(self, index: int) -> dict[str, tuple[int, ...]]:
        """Parameter name → shape for this bucket, number `index` of the plan."""
        batch = (len(self.members), self.shape.terms)
        return {
            f"b{index}_k{k}_{name}": batch + shape
            for k, unit in enumerate(self.shape.units, 1)
            for name, shape in unit.tensors.items()
        }


@dataclass(frozen=True)
class Plan:
    """All shapes of an adapter, and where its groups lie in the vector of N elements."""

    config: AdapterConfig
    targets: tuple[TargetShape, ...]
    starts: tuple[int, ...]  # where each group starts in the vector
    buckets: tuple[Bucket, ...]

    @property
    def elements(self) -> int:
        """N."""
        return sum(target.elements for target in self.targets)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every trained tensor: name → shape."""
        return {name: shape for i, b in enumerate(self.buckets) for name, shape in b.tensors(i).items()}

    @property
    def params(self) -> int:
        """Trained parameters of the adapter, cores included, head excluded."""
        return sum(len(bucket.members) * bucket.shape.params for bucket in self.buckets)


def plan(config: AdapterConfig, targets: Iterable[TargetShape]) -> Plan:
    """Cut the targets into groups and fold each: section 3.2 and A.3 of the paper.

    Raises:
        UsageError: where the knobs do not fit these targets; the message names both numbers.

    >>> vit_base = [TargetShape(f"blocks.{i // 2}.attn.qkv", 768, 768) for i in range(24)]
    >>> example = plan(AdapterConfig(groups=4, order=3, rank=4), vit_base)
    >>> example.buckets[0].shape.sides, example.buckets[0].shape.n_out, example.params
    ((153, 153, 153), 3538944, 7600)
    """
    targets = tuple(targets)
    if not targets:
        raise UsageError("no target to adapt", where="adapter.targets", hint="name at least one weight")
    spans = _cut(config, targets)
    by_shape: dict[GroupShape, list[int]] = {}
    for index, span in enumerate(spans):
        by_shape.setdefault(_group_shape(config, span), []).append(index)
    buckets = tuple(Bucket(shape, tuple(members)) for shape, members in by_shape.items())
    return Plan(config, targets, tuple(span.start for span in spans), buckets)


@dataclass(frozen=True)
class _Span:
    """A group before folding: its place in the vector, the width it folds to, the weights it holds."""

    start: int
    n: int
    width: int
    weights: tuple[TargetShape, ...]


def _cut(config: AdapterConfig, targets: tuple[TargetShape, ...]) -> list[_Span]:
    if config.groups == "weight":
        return _boundaries([(target,) for target in targets])
    if config.groups == "layer":
        layers: dict[str, list[TargetShape]] = {}
        for target in targets:
            layers.setdefault(target.layer or target.name, []).append(target)
        if [target for layer in layers.values() for target in layer] != list(targets):
            raise UsageError("the targets of a layer are not neighbours", where="adapter.groups", hint="groups: weight")
        return _boundaries([tuple(layer) for layer in layers.values()])
    total, count = sum(target.elements for target in targets), int(config.groups)
    n = -(-total // count)
    if (count - 1) * n >= total:
        raise UsageError(
            f"{count} groups of {n} elements leave the last one empty: the targets have {total:,} elements",
            where="adapter.groups",
            hint=f"at most {-(-total // n)} groups",
        )
    width = max(target.columns for target in targets)
    return [_Span(g * n, n, width, targets) for g in range(count)]


def _boundaries(groups: Sequence[tuple[TargetShape, ...]]) -> list[_Span]:
    spans, start = [], 0
    for weights in groups:
        n = sum(weight.elements for weight in weights)
        spans.append(_Span(start, n, max(weight.columns for weight in weights), weights))
        start += n
    return spans


def _group_shape(config: AdapterConfig, span: _Span) -> GroupShape:
    n_in = math.ceil(config.exact_ratio * span.n)
    sides = _fold(config, span, n_in)
    if config.splits == 1:
        units: tuple[UnitShape, ...] = (_unit(config, sides),)
    elif config.combine == "hadamard":
        units = (_unit(config, sides),) * config.splits
    else:
        units = _kronecker_units(config, sides)
    return GroupShape(units, config.terms, sides, config.fold != "regular", n_in, span.n)


def _fold(config: AdapterConfig, span: _Span, n_in: int) -> tuple[int, ...]:
    """The sides a group's n_in elements are folded to."""
    if config.order == 1:
        return (n_in,)
    if config.fold == "none":
        return (-(-n_in // span.width), span.width)
    if config.fold == "regular":
        side = -(-root_ceil(n_in, config.order) // config.align) * config.align
        return (side,) * config.order
    shapes = {(weight.rows, weight.columns) for weight in span.weights}
    if len(shapes) > 1:
        listed = ", ".join(f"{rows}×{columns}" for rows, columns in sorted(shapes))
        raise UsageError(f"weights of different shapes cannot be stacked: {listed}", where="adapter.fold",
                         hint="fold: regular")  # fmt: skip
    rows, columns = shapes.pop()
    if span.n % (rows * columns):
        raise UsageError(
            f"a group of {span.n:,} elements cuts a weight of {rows}×{columns}",
            where="adapter.groups",
            hint=f"to stack, a number of groups that divides {len(span.weights)}",
        )
    return (span.n // (rows * columns), rows, columns)


def _unit(config: AdapterConfig, sides: tuple[int, ...]) -> UnitShape:
    ranks = tuple(0 if rank == "full" else rank for rank in config.ranks)
    for rank, side in zip(ranks, sides, strict=True):
        if rank > side:
            raise UsageError(
                f"rank {rank} is larger than a side of {side} ({'×'.join(map(str, sides))})",
                where="adapter.rank",
                hint=f"a rank of at most {min(sides)}",
            )
    return UnitShape(sides, ranks, config.core_kind if any(ranks) else "dense")


def _kronecker_units(config: AdapterConfig, sides: tuple[int, ...]) -> tuple[UnitShape, ...]:
    """A left factor of sides f and K − 1 right units: the product covers every side (Fig. 3)."""
    f = config.split_dim
    if f > min(sides):
        raise UsageError(
            f"a left factor of side {f} does not fit a side of {min(sides)} ({'×'.join(map(str, sides))})",
            where="adapter.split_dim",
            hint=f"at most {min(sides)}",
        )
    right = _unit(config, tuple(root_ceil(-(-side // f), config.splits - 1) for side in sides))
    lefts = (f,) * config.order
    left = UnitShape(lefts, (0,) * config.order, "dense") if config.left == "dense" else _unit(config, lefts)
    return (left, *(right,) * (config.splits - 1))


def root_ceil(value: int, power: int) -> int:
    """The smallest d with d^power ≥ value, exactly (a floating root is off by one near perfect powers).

    >>> root_ceil(27, 3), root_ceil(28, 3), root_ceil(10**18, 3), root_ceil(10**18 + 1, 3)
    (3, 4, 1000000, 1000001)
    """
    low, high = 0, 1
    while high**power < value:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle**power >= value else (middle, high)
    return high
