"""Plane factors from the base: leading singular vectors of each group's own weights, folded like ΔW.

LoRA-XS for matrices, the higher-order SVD for tensors: A_m holds left singular vectors of the unfolding along mode m,
and the first mode's are multiplied by their singular values. They are not stored but
recomputed from the base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from superlora_cli.adapter.shapes import Bucket, Plan
from superlora_cli.errors import UsageError

TALL = 2**13  # rows of a matrix
LOST = 1e-7  # of the largest: smaller singular values are rounding errors in its Gram matrix


def planes(plan: Plan, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """Every frozen plane factor by name, float32 on the CPU, (groups, terms, d, r).

    Args:
        plan: the adapter's shapes, with `frozen: svd`.
        weights: the base's target slices in the order of the plan. Weights without values (meta) give zeros.

    Raises:
        UsageError: a group has no singular vectors, because its weights are all zero.
    """
    if any(weight.is_meta for weight in weights):
        return {name: torch.zeros(shape, dtype=torch.float32, device="cpu") for name, shape in _shapes(plan).items()}
    found: dict[str, list[Tensor]] = {name: [] for name in _shapes(plan)}
    vector = torch.cat([weight.detach().flatten().cpu() for weight in weights])
    for bucket in plan.buckets:
        (own,), terms = bucket.units, bucket.shape.terms
        for group in bucket.members:
            tensor = folded(bucket, vector[plan.starts[group] :])
            if not tensor.any():
                what = f"group {group} of the base's weights is all zero, so it has no singular vectors"
                raise UsageError(what, where="adapter.frozen", hint="frozen: random, or leave it out of the targets")
            for m, (side, rank) in enumerate(zip(own.shape.sides, own.shape.ranks, strict=True), 1):
                if f"A{m}" in own.shape.frozen:
                    unfolded = tensor.movedim(m - 1, 0).reshape(side, -1)
                    vectors = singular(unfolded, terms * rank, scaled=m == 1)  # (d, t·r)
                    found[own.name(f"A{m}")].append(vectors.view(side, terms, rank).movedim(1, 0))
    return {name: torch.stack(group).float() for name, group in found.items()}


def singular(matrix: Tensor, count: int, *, scaled: bool) -> Tensor:
    """The first `count` left singular vectors of a float64 matrix (d, e) as columns, times their values if `scaled`.

    Where its rank is lower, the rest are any orthonormal ones. The sign of a vector makes its entry of the largest
    magnitude positive, so that it is the same on every machine.
    """
    tall = len(matrix) > TALL > matrix.shape[1]  # then the Gram matrix of its columns is the small one
    values, vectors = torch.linalg.eigh(matrix.mT @ matrix if tall else matrix @ matrix.mT)  # ascending
    vectors, values = vectors[:, -count:].flip(-1), values[-count:].flip(-1).clamp_min(0).sqrt()
    if tall:
        kept = values > LOST * values[0]
        vectors = matrix @ vectors / values if kept.all() else torch.linalg.qr(matrix @ vectors * kept).Q
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * torch.where(largest < 0, -1.0, 1.0)
    return vectors * values if scaled else vectors


def folded(bucket: Bucket, vector: Tensor) -> Tensor:
    """The first elements of a vector as the tensor of a bucket's unit: float64 on the CPU, padded with zeros."""
    sides = bucket.shape.sides
    own = vector[: bucket.shape.n_out].cpu().double()
    return torch.nn.functional.pad(own, (0, math.prod(sides) - len(own))).view(sides)


def _shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {
        unit.name(part): (*unit.batch, *unit.shape.tensors[part])
        for unit in plan.units
        for part in unit.shape.frozen
        if part != "core"
    }
