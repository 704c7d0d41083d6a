"""Plane factors and cores: how they start, and how they make a unit C ×_1 A_1 ... ×_M A_M."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.layout import GroupShape, Plan, UnitShape
from superlora_cli.adapter.prng import random_state
from superlora_cli.adapter.projections import is_nonlinear


def expand(unit: UnitShape, tensors: Mapping[str, Tensor]) -> Tensor:
    """A unit's tensor from its factors, batched: (*b, d_1, ..., d_M).

    Args:
        unit: the shapes.
        tensors: `core` (*b, r_1, ..., r_M) if stored, and `A1` ... `AM`, each (*b, d_m, r_m).

    Source: Eq. 3 (Tucker); with a diagonal or identity core, CP.
    """
    if unit.is_dense:
        return tensors["core"]
    if unit.core == "dense":
        return _tucker(unit, tensors)
    return _cp(unit, tensors)


def _tucker(unit: UnitShape, tensors: Mapping[str, Tensor]) -> Tensor:
    """Mode products from the small side: each turns the leading axis r_m into a trailing d_m."""
    core = tensors["core"]  # (*b, 4, 4, 4)
    batch = core.shape[: -len(unit.sides)]
    for m, rank in enumerate(unit.ranks, 1):
        leading = rank or unit.sides[m - 1]
        rows = core.reshape(*batch, leading, -1).mT  # (*b, 16, 4): the other axes in front, axis m last
        core = rows @ tensors[f"A{m}"].mT if rank else rows  # (*b, 16, 4) @ (4, 153) -> (*b, 16, 153)
    return core.reshape(*batch, *unit.sides)  # after M rounds the axes are in order again


def _cp(unit: UnitShape, tensors: Mapping[str, Tensor]) -> Tensor:
    """Σ_r λ_r a_1r ∘ ... ∘ a_Mr, as one product of two Khatri–Rao halves."""
    planes = [tensors[f"A{m}"] for m in range(1, len(unit.sides) + 1)]
    if unit.core == "diagonal":
        planes[0] = planes[0] * tensors["core"].unsqueeze(-2)  # (*b, d, r) * (*b, 1, r)
    half = max(1, len(planes) // 2)
    left, right = _khatri_rao(planes[:half]), _khatri_rao(planes[half:])
    return (left @ right.mT).reshape(*left.shape[:-2], *unit.sides)


def _khatri_rao(planes: list[Tensor]) -> Tensor:
    """Column-wise Kronecker product: (*b, d_1, r), (*b, d_2, r) -> (*b, d_1·d_2, r)."""
    product = planes[0]
    for plane in planes[1:]:
        product = (product.unsqueeze(-2) * plane.unsqueeze(-3)).flatten(-3, -2)
    return product


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
        return right.squeeze(1)
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
    """Start values: name → float32 tensor, such that ΔW = 0 exactly.

    `unit`: planes with orthonormal columns times √d, so that entries have unit scale; core N(0, 1) / √r^(M−1).
    `lora`: planes uniform with the bound that PEFT's LoRA uses (Kaiming). The last unit (for Kronecker the right
    one) has its first plane at zero, or is zero where it has no plane. Under a nonlinear F nothing is zero and
    units have entries of unit scale: ΔW = F(x) − F(x₀), and F's slope at zero is zero.
    """
    nonzero = is_nonlinear(plan.config.projection)
    values: dict[str, Tensor] = {}
    for index, bucket in enumerate(plan.buckets):
        last = len(bucket.shape.units)
        for name, shape in bucket.tensors(index).items():
            k, part = name.split("_")[1:]
            unit = bucket.shape.units[int(k[1:]) - 1]
            if int(k[1:]) == last and part == zeroed(unit) and not nonzero:
                values[name] = torch.zeros(shape)
            else:
                draw = random_state(plan.config.seed, "init", name)
                start = _start(plan.config, unit, part, shape, draw)
                if nonzero and part == zeroed(unit) and part != "core":
                    start /= math.sqrt(shape[-1])  # r terms of unit scale add up to √r
                values[name] = torch.from_numpy(start).float()
    return values


def zeroed(unit: UnitShape) -> str:
    """The tensor of a unit that starts at zero: its first plane, as in LoRA; the core where there is none."""
    return next((name for name in unit.tensors if name != "core"), "core")


def _start(
    config: AdapterConfig, unit: UnitShape, part: str, shape: tuple[int, ...], draw: np.random.RandomState
) -> np.ndarray:
    if part == "core":
        if unit.core == "diagonal":
            return np.ones(shape)
        if unit.is_dense:  # a Kronecker factor or a projected vector: unit entries
            return draw.standard_normal(shape)
        ranks = unit.core_shape
        return draw.standard_normal(shape) / math.prod(ranks) ** ((len(ranks) - 1) / (2 * len(ranks)))
    side = shape[-2]
    if config.init == "lora":
        return draw.uniform(-1, 1, shape) / math.sqrt(side)
    columns, triangle = np.linalg.qr(draw.standard_normal(shape))
    signs = np.sign(np.diagonal(triangle, axis1=-2, axis2=-1))[..., None, :]  # makes the decomposition unique
    return columns * signs * math.sqrt(side)
