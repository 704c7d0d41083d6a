"""Initial values of the trained tensors: ΔW = 0, at a scale that suits one learning rate."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.prng import random_state
from superlora_cli.adapter.projections import is_nonlinear
from superlora_cli.adapter.shapes import THETA, Plan, UnitShape

EVEN = math.sqrt(3)  # numbers spread evenly within ± this are of unit scale


def initial(plan: Plan) -> dict[str, Tensor]:
    """Initial values of the trained tensors: name → float32 tensor, such that ΔW = 0 exactly.

    `unit`: planes with orthonormal columns times √d, so that entries have unit scale; the core is N(0, 1) / √r^(M−1).
    `gradient`: the same, until there is a gradient (`informed`).
    `lora`: planes uniform within the bound of PEFT's LoRA (Kaiming). One tensor of each group starts at zero
    (`GroupShape.zeroed`: for Kronecker the right unit's first plane); `relative` says where that is not possible.
    θ of an F_in starts normal, so that entries have the same scale as without F_in; with `lora` it is uniform within
    ±0.02, as in PEFT's Uni-LoRA. With `bits` of 1 to 8 it is spread evenly over the levels.
    """
    if plan.config.inner is not None:
        return {THETA: _initial_theta(plan)}
    nonzero = relative(plan)
    values: dict[str, Tensor] = {}
    for bucket in plan.buckets:
        for unit in bucket.units:
            for part, shape in unit.trained.items():
                name = unit.name(part)
                if name == bucket.zeroed and not nonzero:
                    values[name] = torch.zeros(shape, dtype=torch.float32, device="cpu")
                    continue
                drawn = start(plan.config, unit.shape, part, shape, random_state(plan.config.seed, "init", name))
                if nonzero and part == unit.shape.zeroed and part.startswith("A"):
                    drawn /= math.sqrt(shape[-1])  # r terms of unit scale add up to √r
                values[name] = torch.from_numpy(drawn).float()
    return values


def relative(plan: Plan) -> bool:
    """Whether ΔW is taken relative to its start, because no factor can be zero there.

    Under a nonlinear F, whose slope vanishes at zero; with quantised numbers, of which none is zero; and where one θ
    makes several factors, which would all be zero.
    """
    if is_nonlinear(plan.config.projection) or plan.config.trained_on_levels:
        return True
    makes_several = any(len(bucket.tensors) > 1 for bucket in plan.buckets)
    return plan.config.inner is not None and plan.config.inner.per != "factor" and makes_several


def _initial_theta(plan: Plan) -> Tensor:
    draw, shape = random_state(plan.config.seed, "init", THETA), plan.tensors[THETA]
    spread = 0.02 if plan.config.init == "lora" else EVEN
    even = plan.config.init == "lora" or plan.config.trained_on_levels
    values = draw.uniform(-spread, spread, shape) if even else draw.standard_normal(shape)
    theta = torch.from_numpy(values).float()
    if not relative(plan):
        zeroed = {bucket.zeroed for bucket in plan.buckets}
        for piece in plan.pieces:
            if not zeroed.isdisjoint(piece.tensors):
                theta[piece.start : piece.start + piece.count] = 0
    return theta


def start_scale(unit: UnitShape, part: str) -> float:
    """Root mean square of the initial entries with `init: unit`: 1, except for a core that sums r^(M−1) products.

    >>> unit = UnitShape((9, 9, 9), (4, 4, 4), "dense")
    >>> round(start_scale(unit, "core"), 6), start_scale(unit, "A1")
    (0.25, 1.0)
    """
    return 1 / CORES[unit.core].spread(unit) if part == "core" else 1.0


def reach(config: AdapterConfig, unit: UnitShape) -> float:
    """The norm of the columns of A_M at the start; about 1 for singular vectors, and with `init: lora`."""
    from_base = config.frozen == "svd" and f"A{len(unit.sides)}" in unit.frozen
    return 1.0 if from_base or config.init == "lora" else math.sqrt(unit.sides[-1])


def start(
    config: AdapterConfig, unit: UnitShape, part: str, shape: tuple[int, ...], draw: np.random.RandomState
) -> np.ndarray:
    """Initial values of scale `start_scale` for a tensor of a unit, in `shape` (..., *the tensor's own)."""
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
