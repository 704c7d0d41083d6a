"""Where every parameter of an adapter comes from, in words and numbers. Integers only: no torch, no numpy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from superlora_cli.adapter.activations import MEANING
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.layout import root_ceil
from superlora_cli.adapter.shapes import THETA, Bucket, Plan, Unit, UnitShape
from superlora_cli.adapter.targets import TargetShape

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class TensorRow(NamedTuple):
    """A trained tensor: its name in the adapter file, shape (groups, terms, …), size, and what it is."""

    name: str
    shape: tuple[int, ...]
    params: int
    what: str


def kinds(plan: Plan) -> list[tuple[int, UnitShape]]:
    """How many units of each shape there are."""
    counted: Counter[UnitShape] = Counter()
    for bucket in plan.buckets:
        for unit in bucket.shape.units:
            counted[unit] += len(bucket.members) * bucket.shape.terms
    return [(count, unit) for unit, count in counted.items()]


def formula(unit: UnitShape) -> str:
    """The trained entries of one unit as Σ r·d plus diagonals and core (section 3.2).

    >>> formula(UnitShape((21,) * 5, (4,) * 5, "dense")), formula(UnitShape((768, 3072), (4, 4), "identity"))
    ('5·21·4 + 4⁵', '768·4 + 3,072·4')
    """
    if unit.is_dense:
        return _product(unit.sides) if unit.trained else "0"
    planes = Counter(shape for name, shape in unit.trained.items() if name.startswith("A"))
    terms = [f"{count}·{side:,}·{rank}" if count > 1 else f"{side:,}·{rank}" for (side, rank), count in planes.items()]
    terms += [_product(shape) for name, shape in unit.trained.items() if not name.startswith("A")]
    return " + ".join(terms) or "0"


def total_formula(plan: Plan) -> str:
    """All units of an adapter: `4 × (5·21·4 + 4⁵)`; with an F_in its numbers, and the entries made from them."""
    texts = []
    for count, unit in kinds(plan):
        if not unit.trained:
            continue
        text = formula(unit)
        texts.append(f"{count:,} × ({text})" if count > 1 else text)
    entries = " + ".join(texts)
    return (
        f"{_product(plan.tensors[THETA])} numbers, from which F_in makes {entries} entries" if plan.pieces else entries
    )


def tensor_rows(plan: Plan) -> list[TensorRow]:
    """Every trained tensor, in the order of the adapter."""
    rows = []
    if plan.config.inner is not None:
        (shape,) = plan.tensors.values()
        return [TensorRow(THETA, shape, plan.params, f"θ, the input of F_in {plan.config.inner.projection}")]
    for bucket in plan.buckets:
        for unit in bucket.units:
            for part, shape in unit.trained.items():
                what = f"{_what(plan.config, unit, part)}, {_members(bucket)}"
                rows.append(TensorRow(unit.name(part), shape, math.prod(shape), what))
    return rows


def steps(plan: Plan) -> Iterator[str]:
    """From targets to units, one line per step: N, how it is cut into groups, how each kind of group is folded."""
    config, n_total = plan.config, plan.elements
    if not config.adapts:
        yield "groups: none, so no weight is adapted and there are no factors"
        return
    if config.multiplies:
        yield f"targets: {_shapes(plan.targets)}"
        yield f"multiply: {config.multiply}, by {_shapes(plan.made)} = {n_total:,} elements (N)"
    else:
        yield f"targets: {_shapes(plan.targets)} = {n_total:,} elements (N)"
    if isinstance(config.groups, str):
        yield f"groups: one per {config.groups}, {len(plan.starts)} in all"
    else:
        yield f"groups: n = ⌈{n_total:,} / {config.groups}⌉ = {plan.buckets[0].shape.n_out:,} elements each"
    for bucket in plan.buckets:
        yield from _fold_steps(config, bucket, several=len(plan.buckets) > 1)
    if config.freeze:
        kind = "singular vectors of the base" if config.frozen == "svd" else "random"
        yield f"frozen: {', '.join(config.freeze)}, {kind}, not stored"
    if config.inner is not None:
        entries = sum(math.prod(shape) for shape in plan.entries.values())
        count, whose = (
            plan.tensors[THETA][0],
            {"all": "all groups", "group": "a group", "factor": "a factor of a group"},
        )
        each = f"{count} θ of {plan.tensors[THETA][1]:,} numbers, one for {whose[config.inner.per]}"
        yield f"F_in: {config.inner.projection}, {each}: {plan.params:,} parameters make {entries:,} entries"
    if plan.positions:
        count = sum(math.prod(shape) for shape in plan.positions.values())
        yield f"positions: {count:,} chosen by gradients, stored in {plan.position_bytes:,} bytes"
    if config.activates:
        yield f"activation: {MEANING.format(config.activation)}"
    if config.bits is not None:
        yield f"bits: {plan.params:,} numbers of {config.bits} bits, {plan.bytes:,} bytes"


def _shapes(targets: Sequence[TargetShape]) -> str:
    """How many there are of each shape."""
    shapes = Counter((target.rows, target.columns) for target in targets)
    return " + ".join(f"{count} × {rows:,}×{columns:,}" for (rows, columns), count in shapes.items())


def _fold_steps(config: AdapterConfig, bucket: Bucket, *, several: bool) -> Iterator[str]:
    shape, order = bucket.shape, config.order
    prefix = f"{_members(bucket)}: " if several else ""
    if config.ratio != 1:
        yield f"{prefix}projection: N_in = ⌈{config.exact_ratio} · {shape.n_out:,}⌉ = {shape.n_in:,}"
    sides = "×".join(f"{side:,}" for side in shape.sides)
    if order == 1:
        yield f"{prefix}fold: none, a vector of {sides} elements"
    elif config.fold == "regular":
        side = root_ceil(shape.n_in, order)
        power = str(order).translate(SUPERSCRIPTS)
        aligned = f", rounded up to {shape.sides[0]:,} (a multiple of {config.align})" if config.align > 1 else ""
        bounds = f"{side - 1:,}{power} < {shape.n_in:,} ≤ {side:,}{power}"
        yield f"{prefix}fold: {bounds}, so every side is {side:,}{aligned}"
    elif config.fold in ("none", "kernel"):
        rows, width = shape.sides
        yield f"{prefix}fold: {config.fold}, ⌈{shape.n_in:,} / {width:,}⌉ = {rows:,} rows of {width:,}"
    else:
        yield f"{prefix}fold: stack, (weights, out, in) = {sides}"
    if config.splits > 1 and config.combine == "kronecker":
        f, right = config.split_dim, shape.units[-1]
        root = "" if config.splits == 2 else f" to the power 1/{config.splits - 1}, rounded up"
        parts = ", ".join(
            f"⌈{side:,}/{f}⌉ = {-(-side // f):,}{root} → {d:,}"
            for side, d in dict.fromkeys(zip(shape.sides, right.sides, strict=True))
        )
        yield f"{prefix}Kronecker: left side {f}, right sides {parts}"
    if shape.terms > 1:
        yield f"{prefix}terms: {shape.terms} products are summed"


def _what(config: AdapterConfig, own: Unit, part: str) -> str:
    unit, k = own.shape, own.k
    if part != "core":
        side, rank = unit.sides[int(part[1:]) - 1], unit.ranks[int(part[1:]) - 1]
        what = f"plane factor A_{part[1:]} ({side:,} × rank {rank})"
        what = f"diagonal D_{part[1:]} of {side:,} before A_{part[1:]}" if part.startswith("D") else what
    elif not unit.is_dense:
        what = f"{unit.core} core C"
    else:
        what = "the elements themselves" if config.order == 1 else "dense factor"
    if config.splits > 1:
        if config.combine == "hadamard":
            factor = f"Hadamard factor {k}"
        else:
            number = f" {k - 1}" if config.splits > 2 else ""
            factor = "left Kronecker factor" if k == 1 else f"right Kronecker factor{number}"
        what = factor if unit.is_dense else f"{what} of the {factor}"
    return what


def _members(bucket: Bucket) -> str:
    """The groups that share a tensor: `groups 0–3`."""
    members = bucket.members
    if len(members) == 1:
        return f"group {members[0]}"
    if members[-1] - members[0] == len(members) - 1:
        return f"groups {members[0]}–{members[-1]}"
    return f"{len(members)} groups from {members[0]} to {members[-1]}"


def _product(sizes: Sequence[int]) -> str:
    """`4⁵` for equal sizes, else `24·4·4`."""
    if len(set(sizes)) == 1:
        return f"{sizes[0]:,}" + (str(len(sizes)).translate(SUPERSCRIPTS) if len(sizes) > 1 else "")
    return "·".join(f"{size:,}" for size in sizes)
