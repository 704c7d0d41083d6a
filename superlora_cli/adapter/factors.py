"""Plane factors and cores: how they start, and how they make a unit C ×_1 A_1 ... ×_M A_M."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.prng import random_state
from superlora_cli.adapter.projections import is_nonlinear
from superlora_cli.adapter.shapes import THETA, GroupShape, Plan, UnitShape


def expand(unit: UnitShape, tensors: Mapping[str, Tensor]) -> Tensor:
    """A unit's tensor from its factors, batched: (*b, d_1, ..., d_M).

    Args:
        unit: the shapes.
        tensors: `core` (*b, r_1, ..., r_M) if stored, and `A1` ... `AM`, each (*b, d_m, r_m).

    Source: Eq. 3.
    """
    return tensors["core"] if unit.is_dense else CORES[unit.core].expand(unit, tensors)


def combine(shape: GroupShape, units: list[Tensor], how: str) -> Tensor:
    """K unit tensors (groups, terms, d_1, ..., d_M) -> the group's tensor (groups, *shape.extent), terms summed.

    Kronecker products are taken axis by axis (Eq. 2) and cropped where the layout says so; `hadamard` multiplies
    elementwise (LoHa).
    """
    if how == "hadamard":
        product = units[0]
        for unit in units[1:]:
            product = product * unit
        return product.sum(1)
    right = units[-1]
    if len(units) == 1:
        return right.sum(1) if shape.terms > 1 else right.squeeze(1)
    order = len(shape.sides)
    for unit in units[-2:0:-1]:
        right = _interleave(unit.flatten(2).unsqueeze(-1) * right.flatten(2).unsqueeze(-2), unit, right, order)
    left = units[0]
    # Σ over terms is the inner axis of one product: (g, f^M, t) @ (g, t, d^M) -> (g, f^M, d^M)
    whole = _interleave(left.flatten(2).mT @ right.flatten(2), left, right, order)
    return whole[(slice(None), *(slice(side) for side in shape.extent))]


def _interleave(product: Tensor, left: Tensor, right: Tensor, order: int) -> Tensor:
    """All pairwise products (*b, ∏ f_m, ∏ d_m) -> Kronecker order (*b, f_1·d_1, ..., f_M·d_M)."""
    batch, fs, ds = product.shape[:-2], left.shape[-order:], right.shape[-order:]
    b = len(batch)
    axes = [*range(b), *(axis for m in range(order) for axis in (b + m, b + order + m))]
    return (
        product.reshape(*batch, *fs, *ds).permute(axes).reshape(*batch, *(f * d for f, d in zip(fs, ds, strict=True)))
    )


def initial(plan: Plan) -> dict[str, Tensor]:
    """Start values of what is trained: name → float32 tensor, such that ΔW = 0 exactly.

    `unit`: planes with orthonormal columns times √d, so that entries have unit scale; core N(0, 1) / √r^(M−1).
    `lora`: planes uniform with the bound that PEFT's LoRA uses (Kaiming). One tensor of each group starts at zero
    (`GroupShape.zeroed`: for Kronecker the right unit's first plane); where that cannot be, `relative` says why.
    An F_in starts from normal numbers, so that entries have the scale that they have without it; with `lora` from
    numbers within ±0.02, as PEFT's Uni-LoRA.
    """
    if plan.config.inner is not None:
        return {THETA: _initial_theta(plan)}
    nonzero = relative(plan)
    values: dict[str, Tensor] = {}
    for index, bucket in enumerate(plan.buckets):
        for name, shape in bucket.tensors(index).items():
            k, part = _place(name)
            unit = bucket.shape.units[k - 1]
            if (k, part) == bucket.shape.zeroed and not nonzero:
                values[name] = torch.zeros(shape, dtype=torch.float32, device="cpu")
            else:
                values_of = start(plan.config, unit, part, shape, random_state(plan.config.seed, "init", name))
                if nonzero and part == unit.zeroed and part.startswith("A"):
                    values_of /= math.sqrt(shape[-1])  # r terms of unit scale add up to √r
                values[name] = torch.from_numpy(values_of).float()
    return values


def relative(plan: Plan) -> bool:
    """Whether ΔW is taken relative to its start, because no factor can be zero there.

    Under a nonlinear F, whose slope vanishes at zero; and where θ makes several factors, all of which would be zero.
    """
    if is_nonlinear(plan.config.projection):
        return True
    makes_several = any(len(bucket.tensors(0)) > 1 for bucket in plan.buckets)
    return plan.config.inner is not None and plan.config.inner.per != "factor" and makes_several


def _initial_theta(plan: Plan) -> Tensor:
    draw, shape = random_state(plan.config.seed, "init", THETA), plan.tensors[THETA]
    values = draw.uniform(-0.02, 0.02, shape) if plan.config.init == "lora" else draw.standard_normal(shape)
    theta = torch.from_numpy(values).float()
    if not relative(plan):
        zeroed = {f"b{i}_k{b.shape.zeroed[0]}_{b.shape.zeroed[1]}" for i, b in enumerate(plan.buckets)}
        for piece in plan.pieces:
            if not zeroed.isdisjoint(piece.tensors):
                theta[piece.start : piece.start + piece.count] = 0
    return theta


def _place(name: str) -> tuple[int, str]:
    """`b0_k2_A1` → (2, "A1")."""
    k, part = name.split("_")[1:]
    return int(k[1:]), part


def start_scale(unit: UnitShape, part: str) -> float:
    """Root mean square of a tensor's entries at the start, `init: unit`: 1, but for a core that sums r^(M−1) products.

    >>> unit = UnitShape((9, 9, 9), (4, 4, 4), "dense")
    >>> round(start_scale(unit, "core"), 6), start_scale(unit, "A1")
    (0.25, 1.0)
    """
    return 1 / CORES[unit.core].spread(unit) if part == "core" else 1.0


def start(
    config: AdapterConfig, unit: UnitShape, part: str, shape: tuple[int, ...], draw: np.random.RandomState
) -> np.ndarray:
    """Values of scale `start_scale` for a tensor of a unit, (..., *its shape)."""
    core = CORES[unit.core]
    if part == "core" and not core.starts_at_one:
        return draw.standard_normal(shape) / core.spread(unit)
    if part == "core" or part.startswith("D"):
        return np.ones(shape)
    side = shape[-2]
    if config.init == "lora":
        return draw.uniform(-1, 1, shape) / math.sqrt(side)
    columns, triangle = np.linalg.qr(draw.standard_normal(shape))
    signs = np.sign(np.diagonal(triangle, axis1=-2, axis2=-1))[..., None, :]  # makes the decomposition unique
    return columns * signs * math.sqrt(side)
