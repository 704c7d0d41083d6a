"""The factored path: updates stay products of factors where the knobs and the targets allow it.

Per token, a (rows, columns) update costs rows · columns multiplications when materialised (the gradient of ΔW), and
3 · `multiplications` when factored (forward, and backward for the input and for the factors).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from superlora_cli.adapter import in_factors
from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.factors import expand
from superlora_cli.adapter.initial import reach, relative
from superlora_cli.adapter.shapes import Bucket, Plan, UnitShape
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.adapter.updates import Activated, Dense, Kronecker, LowRank, Update


def why_not_factored(plan: Plan, *, moved: bool = False) -> str | None:
    """Why these knobs cannot take the factored path; None if they can.

    Args:
        moved: ask of ΔW before that of the start is subtracted from it.
    """
    config = plan.config
    if reason := in_factors.why_not(config):
        return reason
    if relative(plan) and not moved:
        return "ΔW is relative to its start, where no factor is zero"
    if config.fold == "stack" or config.splits > 1:
        return None
    held = 0
    for bucket in plan.buckets:
        width = bucket.shape.sides[-1]
        for group, weights in zip(bucket.members, _members(plan, bucket), strict=True):
            for _, target in weights:
                if target.columns != width:
                    return f"{target.name} has {target.columns} columns, but its group has {width}"
            held += sum(target.elements for _, target in weights)
            if held > (group + 1) * bucket.shape.n_out and isinstance(config.groups, int):
                return f"{weights[-1][1].name} is split between two groups"
    return None


def multiplications(plan: Plan) -> int:
    """Multiplications per token and forward pass on the factored path, over all targets."""
    total = 0
    for bucket in plan.buckets:
        shape, right = bucket.shape, bucket.shape.units[-1]
        ranks = [rank for rank in right.ranks[-2:] if rank]
        for _, target in (weight for group in _members(plan, bucket) for weight in group):
            rank = max(ranks, default=min(target.rows, target.columns))
            if len(shape.units) == 1:
                total += rank * (target.rows + target.columns)
                continue
            f = shape.units[0].sides[0]
            total += shape.terms * ((target.rows + target.columns + f * f) * rank if ranks else target.elements // f)
    return total


def pays(plan: Plan) -> bool:
    """Whether the factored path needs fewer multiplications for many tokens."""
    return 3 * multiplications(plan) < sum(target.elements for target in plan.targets)


def factored(plan: Plan, factors: Mapping[str, Tensor]) -> list[Update]:
    """One update per target on the factored path, differentiable in {C, A}; see `why_not_factored`."""
    updates: dict[int, Update] = {}
    for bucket in plan.buckets:
        tensors = [unit.of(factors) for unit in bucket.units]
        if plan.config.scale != 1:
            first = next(iter(tensors[0]))
            tensors[0][first] = tensors[0][first] * plan.config.scale
        members = _members(plan, bucket)
        if len(bucket.shape.units) == 2:
            updates |= _kronecker(bucket, tensors, members)
        elif plan.config.fold == "stack":
            updates |= _stacked(bucket.shape.units[0], tensors[0], members)
        else:
            updates |= _rows(bucket.shape.units[0], tensors[0], members)
        if plan.config.activates:
            updates |= _activated(plan, bucket, updates, members)
    return [updates[i] for i in range(len(plan.targets))]


def _activated(
    plan: Plan, bucket: Bucket, updates: Mapping[int, Update], members: list[list[tuple[int, TargetShape]]]
) -> dict[int, Update]:
    """B σ(A x / c) c in place of B A x: c gives σ numbers of the scale of x at the start, whatever the width."""
    c, found = reach(plan.config, bucket.shape.units[0]), dict[int, Update]()
    for i, _ in (weight for group in members for weight in group):
        update = updates[i]
        assert isinstance(update, LowRank)
        found[i] = Activated(update.left * c, update.right / c, plan.config.activation)
    return found


def _members(plan: Plan, bucket: Bucket) -> list[list[tuple[int, TargetShape]]]:
    """(index, target) of the weights in each group of a bucket, in order."""
    starts, start = [], 0
    for target in plan.targets:
        starts.append(start)
        start += target.elements
    inside = []
    for group in bucket.members:
        low, high = plan.starts[group], plan.starts[group] + bucket.shape.n_out
        inside.append([(i, t) for i, t in enumerate(plan.targets) if low <= starts[i] < high])
    return inside


def _rows(
    unit: UnitShape, tensors: dict[str, Tensor], members: list[list[tuple[int, TargetShape]]]
) -> dict[int, Update]:
    """Weights stacked along `out`: ΔW_i = (A_1 C)[rows_i] A_2ᵀ."""
    height = unit.sides[0]
    left = (
        CORES[unit.core].first_mode(unit, tensors).squeeze(1)
    )  # (g, height, r), the side instead of r for a full mode
    right = tensors["A2"].squeeze(1).mT if "A2" in tensors else None  # (g, r, width)
    rights = None if right is None else right.unbind(0)
    updates: dict[int, Update] = {}
    for g, (own, group) in enumerate(zip(left.unbind(0), members, strict=True)):
        sizes = [target.rows for _, target in group]
        pieces = torch.split(own, [*sizes, height - sum(sizes)] if sum(sizes) < height else sizes)
        for (i, _), piece in zip(group, pieces, strict=False):
            updates[i] = Dense(piece) if rights is None else LowRank(piece, rights[g])
    return updates


def _stacked(
    unit: UnitShape, tensors: dict[str, Tensor], members: list[list[tuple[int, TargetShape]]]
) -> dict[int, Update]:
    """LoTR's geometry: ΔW_w = A_2 (C ×_1 a_w) A_3ᵀ for weight w of the stack."""
    inner = CORES[unit.core].first_mode(unit, tensors).squeeze(1)  # C ×_1 A_1: (g, w, r_2, r_3)
    left = tensors["A2"] @ inner if "A2" in tensors else inner  # (g, 1, out, r_2) @ (g, w, r_2, r_3)
    updates: dict[int, Update] = {}
    for g, group in enumerate(members):
        for w, (i, _) in enumerate(group):
            updates[i] = LowRank(left[g, w], tensors["A3"][g, 0].mT) if "A3" in tensors else Dense(left[g, w])
    return updates


def _kronecker(
    bucket: Bucket, tensors: list[dict[str, Tensor]], members: list[list[tuple[int, TargetShape]]]
) -> dict[int, Update]:
    """One weight per group: Σ_t left_t ⊗ (A_1 C A_2ᵀ)_t."""
    left_unit, right_unit = bucket.shape.units
    left = expand(left_unit, tensors[0])  # (g, t, f, f)
    right = tensors[1]
    if right_unit.is_dense or "A1" not in right or "A2" not in right:
        outs, intos = expand(right_unit, right), None
    else:
        outs, intos = CORES[right_unit.core].first_mode(right_unit, right), right["A2"]
    lefts, rights = left.unbind(0), outs.unbind(0)
    return {
        i: Kronecker(lefts[g], rights[g], None if intos is None else intos[g], target.rows, target.columns)
        for g, ((i, target),) in enumerate(members)
    }
