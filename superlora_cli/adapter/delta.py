"""Parameters become weight updates here, and nowhere else (Eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from superlora_cli.adapter.factors import combine, expand
from superlora_cli.adapter.layout import Bucket, Plan


def deltas(plan: Plan, params: Mapping[str, Tensor]) -> list[Tensor]:
    """ΔW of every target, (rows, columns) each, in model order; differentiable in `params`.

    Args:
        plan: the adapter's shapes.
        params: its trained tensors, as named and shaped by `plan.tensors`.
    """
    outputs = [_outputs(plan, index, bucket, params) for index, bucket in enumerate(plan.buckets)]
    if len(outputs) == 1:
        pieces = list(_split(outputs[0].flatten(), [target.elements for target in plan.targets]))
    else:
        pieces = _regroup(plan, outputs)
    return [piece.view(t.rows, t.columns) for piece, t in zip(pieces, plan.targets, strict=True)]


def _outputs(plan: Plan, index: int, bucket: Bucket, params: Mapping[str, Tensor]) -> Tensor:
    """One bucket's groups after F: (groups, n_out)."""
    shape, config = bucket.shape, plan.config
    units = []
    for k, unit in enumerate(shape.units, 1):
        tensors = {name: params[f"b{index}_k{k}_{name}"] for name in unit.tensors}
        if k == 1 and config.scale != 1:  # ΔW is linear in each tensor: scale a small one, not N elements
            first = next(iter(tensors))
            tensors[first] = tensors[first] * config.scale
        units.append(expand(unit, tensors))
    folded = combine(shape, units, config.combine)  # (groups, d_1, ..., d_M)
    return folded.flatten(1)[:, : shape.n_in]


def _split(vector: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Consecutive pieces of a vector, what is left over dropped; one node in the graph, not one a piece."""
    rest = vector.numel() - sum(sizes)
    return torch.split(vector, [*sizes, rest] if rest else sizes)[: len(sizes)]


def _regroup(plan: Plan, outputs: list[Tensor]) -> list[Tensor]:
    """Several buckets: their groups, in vector order, hold whole targets each."""
    rows = {
        group: row
        for bucket, output in zip(plan.buckets, outputs, strict=True)
        for group, row in zip(bucket.members, output.unbind(0), strict=True)
    }
    pieces: list[Tensor] = []
    waiting = list(plan.targets)
    for group in sorted(rows):
        sizes: list[int] = []
        while waiting and sum(sizes) < rows[group].numel():
            sizes.append(waiting.pop(0).elements)
        pieces.extend(_split(rows[group], sizes))
    return pieces
