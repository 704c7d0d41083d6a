"""From targets to groups to units: every shape of an adapter, in integers only.

`plan(config, targets)` is the single description of an adapter's shapes: parameters are counted, factors allocated and
updates ΔW assembled from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.cores import WHOLE
from superlora_cli.adapter.inner_config import MAPS
from superlora_cli.adapter.multiplied import made as shapes_made
from superlora_cli.adapter.projections import PROJECTIONS, Size, held
from superlora_cli.adapter.shapes import Bucket, GroupShape, Piece, Plan, UnitShape
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.errors import UsageError

LARGEST_UNIT = 2**28  # limit for a unit with more than 4 times the elements of its group
LARGEST_MAP = 2**31  # limit for the elements of F: their positions are int32


def plan(config: AdapterConfig, targets: Iterable[TargetShape]) -> Plan:
    """Cut the targets into groups and fold each: section 3.2 and A.3 of the paper.

    Raises:
        UsageError: the knobs do not fit these targets; the message names both numbers.

    >>> vit_base = [TargetShape(f"blocks.{i // 2}.attn.qkv", 768, 768) for i in range(24)]
    >>> example = plan(AdapterConfig(groups=4, order=3, rank=4), vit_base)
    >>> example.buckets[0].shape.sides, example.buckets[0].shape.n_out, example.params
    ((153, 153, 153), 3538944, 7600)
    """
    targets = tuple(targets)
    if not config.adapts:
        if targets:
            raise UsageError(
                f"{len(targets)} targets with groups none", where="adapter.groups", hint="leave the targets out"
            )
        return Plan(config, (), (), ())
    if not targets:
        raise UsageError("no target to adapt", where="adapter.targets", hint="name at least one weight")
    spans = _cut(config, shapes_made(config.multiply, config.block, targets))
    by_shape: dict[GroupShape, list[int]] = {}
    for index, span in enumerate(spans):
        by_shape.setdefault(_group_shape(config, span), []).append(index)
    buckets = tuple(Bucket(i, shape, tuple(members)) for i, (shape, members) in enumerate(by_shape.items()))
    made = Plan(config, targets, tuple(span.start for span in spans), buckets)
    _check_trained(made)
    _check_sizes(made)
    return made


def _check_trained(made: Plan) -> None:
    """Refuse a plan in which a group has nothing to train or to start, or θ more numbers than entries made from it."""
    if not all(bucket.shape.params for bucket in made.buckets):
        raise UsageError("nothing is left to train", where="adapter.freeze", hint="freeze fewer factors")
    for unit in (bucket.shape.units[0] for bucket in made.buckets):
        starts = {"gradient": unit.informed, "activations": "A2" in unit.informed}
        if not starts.get(made.config.init, True):
            what = f"init {made.config.init} finds no factor to start: what is trained starts at zero"
            raise UsageError(what, where="adapter.init", hint="init: unit, or freeze fewer factors")
    for piece in made.pieces:
        if made.config.inner and sum(piece.sizes) < made.config.inner.dim:
            what = f"{made.config.inner.dim} numbers for {sum(piece.sizes)} entries of {', '.join(piece.tensors)}"
            raise UsageError(what, where="adapter.inner.dim", hint=f"at most {sum(piece.sizes)}")


def _check_sizes(made: Plan) -> None:
    """Refuse excessive memory: units that fold to far more elements than their group, and a huge F or F_in."""
    config = made.config
    for shape in (bucket.shape for bucket in made.buckets):
        folded = shape.units[0].elements
        if config.combine == "kronecker":
            folded = math.prod(unit.elements for unit in shape.units)
        if folded > LARGEST_UNIT and folded > 4 * shape.n_in:
            knob, hint = ("order", "a lower order or align") if config.splits == 1 else ("splits", "fewer splits")
            what = f"a unit folds to {folded:,} elements, but its group has {shape.n_in:,}"
            raise UsageError(what, where=f"adapter.{knob}", hint=hint)
        _check_map(config.projection, Size(shape.n_in, shape.n_out, grid=shape.grid), "projection")
    for piece in made.pieces:
        assert config.inner is not None
        if config.inner.projection in MAPS:
            _check_map(MAPS[config.inner.projection], Size(config.inner.dim, sum(piece.sizes)), "inner")


def _check_map(projection: str, size: Size, knob: str) -> None:
    elements = held(projection, size)
    if elements > LARGEST_MAP:
        what = f"from {size.n_in:,} numbers to {size.n_out:,} takes {elements:,} elements, more than {LARGEST_MAP:,}"
        raise UsageError(what, where=f"adapter.{knob}", hint="more groups, or groups: weight")


@dataclass(frozen=True)
class _Span:
    """A group before folding: its start in the vector, its elements, the width to fold to, and its weights."""

    start: int
    n: int
    width: int
    weights: tuple[TargetShape, ...]


def _cut(config: AdapterConfig, targets: tuple[TargetShape, ...]) -> list[_Span]:
    if config.groups == "weight":
        return _boundaries(config, [(target,) for target in targets])
    if config.groups == "layer":
        layers: dict[str, list[TargetShape]] = {}
        for target in targets:
            layers.setdefault(target.layer or target.name, []).append(target)
        if [target for layer in layers.values() for target in layer] != list(targets):
            raise UsageError("the targets of a layer are not adjacent", where="adapter.groups", hint="groups: weight")
        return _boundaries(config, [tuple(layer) for layer in layers.values()])
    total, count = sum(target.elements for target in targets), int(config.groups)
    n = -(-total // count)
    if (count - 1) * n >= total:
        raise UsageError(
            f"{count} groups of {n} elements leave the last one empty: the targets have {total:,} elements",
            where="adapter.groups",
            hint=f"at most {-(-total // n)} groups",
        )
    width = _width(config, targets)
    return [_Span(g * n, n, width, targets) for g in range(count)]


def _width(config: AdapterConfig, weights: Sequence[TargetShape]) -> int:
    """The columns of a group that keeps those of its weights, the most of any; or the elements of their kernels.

    Raises:
        UsageError: their kernels have different sizes.
    """
    if config.fold != "kernel":
        return max(weight.columns for weight in weights)
    kernels = sorted({weight.kernel for weight in weights})
    if len(kernels) > 1:
        raise UsageError(f"kernels of {' and '.join(map(str, kernels))} elements in a group", where="adapter.fold",
                         hint="targets with equal kernels, or groups: weight")  # fmt: skip
    return kernels[0]


def _boundaries(config: AdapterConfig, groups: Sequence[tuple[TargetShape, ...]]) -> list[_Span]:
    spans, start = [], 0
    for weights in groups:
        n = sum(weight.elements for weight in weights)
        spans.append(_Span(start, n, _width(config, weights), weights))
        start += n
    return spans


def _group_shape(config: AdapterConfig, span: _Span) -> GroupShape:
    n_in = math.ceil(config.exact_ratio * span.n)
    sides = _fold(config, span, n_in)
    if config.splits == 1:
        units: tuple[UnitShape, ...] = (_unit(config, sides, 1),)
    elif config.combine == "hadamard":
        units = (_unit(config, sides, 1), *(_unit(config, sides, 2),) * (config.splits - 1))
    else:
        units = _kronecker_units(config, sides)
    terms = -(-min(sides) // config.scale_rank) if config.terms == "full" else config.terms
    if config.frozen == "svd" and terms * config.scale_rank > min(sides):
        raise UsageError(f"{terms} terms of rank {config.scale_rank} from the {min(sides)} singular vectors of a side",
                         where="adapter.terms", hint=f"at most {min(sides) // config.scale_rank}")  # fmt: skip
    grid = _grid(config, span) if PROJECTIONS[config.projection].SPECTRAL else None
    return GroupShape(units, terms, sides, config.fold != "regular", n_in, span.n, grid)


def _grid(config: AdapterConfig, span: _Span) -> tuple[int, int]:
    """A group as a matrix (rows, columns), folded as `fold` says; unfolded, it keeps the columns of the weights."""
    if config.fold in ("none", "kernel"):
        return (-(-span.n // span.width), span.width)
    return (root_ceil(span.n, 2),) * 2


def _fold(config: AdapterConfig, span: _Span, n_in: int) -> tuple[int, ...]:
    """The sides a group's n_in elements are folded to."""
    if config.order == 1:
        return (n_in,)
    if config.fold in ("none", "kernel"):
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
            f"a group of {span.n:,} elements splits a weight of {rows}×{columns}",
            where="adapter.groups",
            hint=f"a number of groups that divides {len(span.weights)}",
        )
    return (span.n // (rows * columns), rows, columns)


def _unit(config: AdapterConfig, sides: tuple[int, ...], k: int) -> UnitShape:
    ranks = tuple(0 if rank == "full" else rank for rank in config.ranks)
    for rank, side in zip(ranks, sides, strict=True):
        if rank > side:
            raise UsageError(
                f"rank {rank} is larger than a side of {side} ({'×'.join(map(str, sides))})",
                where="adapter.rank",
                hint=f"a rank of at most {min(sides)}",
            )
    unit = UnitShape(sides, ranks, config.core_kind if any(ranks) else WHOLE, config.diagonals)
    return replace(unit, frozen=tuple(name for name in unit.tensors if config.freezes(k, name)))


def _kronecker_units(config: AdapterConfig, sides: tuple[int, ...]) -> tuple[UnitShape, ...]:
    """A left factor of sides f and K − 1 right units: the product covers every side (Fig. 3)."""
    f = config.split_dim
    if f > min(sides):
        raise UsageError(
            f"a left factor of side {f} does not fit a side of {min(sides)} ({'×'.join(map(str, sides))})",
            where="adapter.split_dim",
            hint=f"at most {min(sides)}",
        )
    right = _unit(config, tuple(root_ceil(-(-side // f), config.splits - 1) for side in sides), 2)
    lefts = (f,) * config.order
    if config.left == "dense":
        left = UnitShape(lefts, (0,) * config.order, WHOLE, frozen=("core",) if config.freezes(1, "core") else ())
    else:
        left = _unit(config, lefts, 1)
    return (left, *(right,) * (config.splits - 1))


__all__ = ["Bucket", "GroupShape", "Piece", "Plan", "UnitShape", "plan", "root_ceil"]


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
