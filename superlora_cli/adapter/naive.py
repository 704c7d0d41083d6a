"""The paper's formulas as they stand, slow and readable: the oracles that the fast paths are tested against."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase, ascii_uppercase

import torch
from torch import Tensor

from superlora_cli.adapter.layout import GroupShape, Plan, UnitShape


def unit_tensor(unit: UnitShape, tensors: Mapping[str, Tensor]) -> Tensor:
    """C ×_1 A_1 ... ×_M A_M by one einsum over an explicit core (Eq. 3): (d_1, ..., d_M)."""
    sides, ranks = ascii_lowercase[: len(unit.sides)], ascii_uppercase[: len(unit.sides)]
    planes = [tensors.get(f"A{m}", torch.eye(side, dtype=_dtype(tensors))) for m, side in enumerate(unit.sides, 1)]
    terms = [f"{side}{rank}" for side, rank in zip(sides, ranks, strict=True)]
    return torch.einsum(f"{ranks},{','.join(terms)}->{sides}", explicit_core(unit, tensors), *planes)


def explicit_core(unit: UnitShape, tensors: Mapping[str, Tensor]) -> Tensor:
    """The core as a full tensor (r_1, ..., r_M): stored, or a superdiagonal of ones or of λ."""
    if unit.core == "dense":
        return tensors["core"]
    core = torch.zeros(unit.ranks, dtype=_dtype(tensors))
    for r in range(unit.ranks[0]):
        core[(r,) * len(unit.ranks)] = tensors["core"][r] if unit.core == "diagonal" else 1.0
    return core


def kronecker(left: Tensor, right: Tensor) -> Tensor:
    """⊗ of two tensors of equal order: out[i·d + j] = left[i] · right[j] along every axis."""
    out = torch.zeros([f * d for f, d in zip(left.shape, right.shape, strict=True)], dtype=left.dtype)
    for index in torch.cartesian_prod(*(torch.arange(f) for f in left.shape)).reshape(-1, left.dim()).tolist():
        block = tuple(slice(i * d, (i + 1) * d) for i, d in zip(index, right.shape, strict=True))
        out[block] = left[tuple(index)] * right
    return out


def group_vector(plan: Plan, index: int, group: int, params: Mapping[str, Tensor]) -> Tensor:
    """One group of bucket `index`: Σ over terms of ⊗ over splits, cropped, flattened: (n_in,)."""
    shape: GroupShape = plan.buckets[index].shape
    total = torch.zeros(shape.sides, dtype=_dtype(params))
    for term in range(shape.terms):
        product: Tensor | None = None
        for k, unit in enumerate(shape.units, 1):
            tensors = {name: params[f"b{index}_k{k}_{name}"][group, term] for name in unit.tensors}
            tensor = unit_tensor(unit, tensors)
            if product is None:
                product = tensor
            else:
                product = product * tensor if plan.config.combine == "hadamard" else kronecker(product, tensor)
        assert product is not None
        total += product[tuple(slice(side) for side in shape.sides)]
    return total.flatten()[: shape.n_in]


def deltas(plan: Plan, params: Mapping[str, Tensor]) -> list[Tensor]:
    """Eq. 2 for every group, written into one vector of N elements, cut into the targets."""
    vector = torch.zeros(plan.elements, dtype=_dtype(params))
    for index, bucket in enumerate(plan.buckets):
        for row, group in enumerate(bucket.members):
            start = plan.starts[group]
            room = vector[start : start + bucket.shape.n_out]
            room += group_vector(plan, index, row, params)[: len(room)] * plan.config.scale
    updates, start = [], 0
    for target in plan.targets:
        updates.append(vector[start : start + target.elements].reshape(target.rows, target.columns))
        start += target.elements
    return updates


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return next(iter(tensors.values())).dtype
