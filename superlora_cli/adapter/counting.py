"""The number of parameters of a setting, and where they come from. Integers only: no torch, no numpy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.shapes import Plan
from superlora_cli.adapter.targets import TargetShape


@dataclass(frozen=True)
class Count:
    """The parameters of an adapter, with their breakdown.

    Attributes:
        adapter: trained parameters, including cores, excluding the head.
        entries: trained entries of {C, A}: the same number, or as many as F_in makes from the parameters.
        core: parameters in core tensors.
        weights: number of targets T.
        elements: N.
        units: for each kind of unit: how many, its sides, and the trained entries of one.
        lora_same_rank: parameters of weight-wise LoRA at the same rank on the same targets.
        plan: the shapes that were counted.
    """

    adapter: int
    entries: int
    core: int
    weights: int
    elements: int
    units: tuple[dict[str, Any], ...]
    lora_same_rank: int
    plan: Plan


def count(config: AdapterConfig, targets: Iterable[TargetShape]) -> Count:
    """Count in closed form: Σ over units of Σ_m r_m·d_m plus the core's ∏ r_m (section 3.2).

    >>> vit_base = [TargetShape(f"w{i}", 768, 768) for i in range(24)]
    >>> counted = count(AdapterConfig(groups=4, order=5), vit_base)
    >>> counted.adapter, counted.core, counted.units
    (5776, 4096, ({'count': 4, 'shape': (21, 21, 21, 21, 21), 'params': 1444},))
    """
    shapes = plan(config, targets)
    units: dict[tuple[tuple[int, ...], int], int] = {}
    core = 0
    for bucket in shapes.buckets:
        copies = len(bucket.members) * bucket.shape.terms
        for unit in bucket.shape.units:
            units[unit.sides, unit.params] = units.get((unit.sides, unit.params), 0) + copies
            core += copies * unit.core_params
    rank = config.scale_rank
    return Count(
        adapter=shapes.params,
        entries=sum(n * params for (_, params), n in units.items()),
        core=0 if config.inner else core,
        weights=len(shapes.targets),
        elements=shapes.elements,
        units=tuple({"count": n, "shape": sides, "params": params} for (sides, params), n in units.items()),
        lora_same_rank=sum(rank * (target.rows + target.columns) for target in shapes.targets),
        plan=shapes,
    )
