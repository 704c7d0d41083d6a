"""The update of every target in the smallest form that is exactly the adapter's own, for files of other programs."""

from __future__ import annotations

from typing import cast

import torch

from superlora_cli.adapter import factored
from superlora_cli.adapter.activations import no_delta
from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.initial import relative
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.shapes import Plan
from superlora_cli.adapter.updates import Dense, Form, Hadamard, Linear, LowRank, scaled


@torch.no_grad()
def own_forms(adapter: SuperLora) -> list[Form]:
    """One form per target: factors, a Kronecker or an elementwise product where the knobs make one, else ΔW.

    Raises:
        UsageError: the update is nonlinear (`activation`), so there is no ΔW.
    """
    if adapter.config.activates:
        raise no_delta(adapter.config.activation)
    if factored.why_not_factored(adapter.plan) is None:
        return [cast(Linear, update) for update in adapter.compute_factored()]
    if factored.why_not_factored(adapter.plan, moved=True) is None and (forms := _moved(adapter)):
        return forms
    if _is_hadamard(adapter.plan):
        return _hadamard(adapter)
    return [Dense(delta.flatten(1)) for delta in adapter.compute()]


def _moved(adapter: SuperLora) -> list[Form]:
    """Where ΔW is relative to its start, the factors of both side by side; [] if that is not smaller than ΔW."""
    starts = factored.factored(adapter.plan, adapter.not_trained().start_factors(adapter.plan))
    found: list[Form] = []
    for now, first in zip(adapter.compute_factored(), starts, strict=True):
        start = scaled(first, adapter.strength)
        if not (isinstance(now, LowRank) and isinstance(start, LowRank)):
            return []
        left, right = torch.cat([now.left, -start.left], 1), torch.cat([now.right, start.right])
        if left.numel() + right.numel() >= len(left) * right.shape[1]:
            return []
        found.append(LowRank(left, right))
    return found


def _is_hadamard(plan: Plan) -> bool:
    """Whether every weight is an elementwise product of two low-rank matrices (LoHa)."""
    config = plan.config
    alone = config.groups == "weight" and config.order == 2 and config.fold == "none" and config.terms == 1
    both = config.combine == "hadamard" and config.splits == 2 and "full" not in config.ranks
    return alone and both and not (config.projects or config.multiplies or relative(plan))


def _hadamard(adapter: SuperLora) -> list[Form]:
    found: dict[int, Form] = {}
    factors, scale = adapter.all_factors(), adapter.config.scale * adapter.strength
    for bucket in adapter.plan.buckets:
        pairs = []
        for unit in bucket.units:
            own = unit.of(factors)
            pairs.append((CORES[unit.shape.core].first_mode(unit.shape, own).squeeze(1), own["A2"].squeeze(1).mT))
        for row, member in enumerate(bucket.members):
            one, other = (LowRank(left[row], right[row]) for left, right in pairs)
            found[member] = Hadamard(LowRank(scale * one.left, one.right), other)
    return [found[index] for index in range(len(adapter.targets))]
