"""What an adapter takes from its base: never stored, but taken again from the base, whose hash is in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from superlora_cli.adapter import svd
from superlora_cli.adapter.shapes import Plan


@dataclass(frozen=True)
class FromBase:
    """Frozen factors by name, as `svd.planes` returns them, and the weights that `multiply` needs, one per target."""

    planes: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Sequence[Tensor] = ()


def from_base(plan: Plan, weights: Sequence[Tensor] | None) -> FromBase | None:
    """What these knobs take from the base's target slices, in the order of the plan; None if it is not available."""
    if weights is None:
        return None
    return FromBase(
        planes=svd.planes(plan, weights) if plan.config.frozen == "svd" else {},
        weights=weights if plan.config.multiplies else (),
    )
