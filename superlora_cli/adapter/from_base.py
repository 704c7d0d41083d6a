"""What an adapter takes from its base: never stored, but taken again from the base, whose hash is in the file.

Positions chosen by gradients are taken from the file itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from superlora_cli.adapter import svd
from superlora_cli.adapter.projections import PROJECTIONS
from superlora_cli.adapter.shapes import Plan


@dataclass(frozen=True)
class FromBase:
    """What is taken.

    Attributes:
        planes: frozen factors by name, as `svd.planes` returns them.
        weights: those that `multiply` needs, one per target.
        chosen: group → the positions of its numbers, (n_in,), under a projection that chooses them.
    """

    planes: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Sequence[Tensor] = ()
    chosen: Mapping[int, Tensor] = field(default_factory=dict)


def from_base(plan: Plan, weights: Sequence[Tensor] | None) -> FromBase | None:
    """What these knobs take from the base's target slices, in the order of the plan; None if it is not available."""
    if weights is None:
        return None
    return FromBase(
        planes=svd.planes(plan, weights) if plan.config.frozen == "svd" else {},
        weights=weights if plan.config.multiplies else (),
        chosen=chosen(plan, weights) if PROJECTIONS[plan.config.projection].CHOOSES == "weights" else {},
    )


def with_positions(base: FromBase | None, plan: Plan, positions: Mapping[str, Tensor]) -> FromBase | None:
    """The same with the positions (groups, n_in) of each bucket, by name; as it is where the plan has none."""
    rows = {bucket.members: positions[bucket.positions] for bucket in plan.buckets if positions}
    by_group = {group: row for members, own in rows.items() for group, row in zip(members, own, strict=True)}
    return replace(base or FromBase(), chosen=by_group) if rows else base


def chosen(plan: Plan, pieces: Sequence[Tensor]) -> dict[int, Tensor]:
    """Group → the positions that F chooses in all targets' elements; the first where they have no values (meta)."""
    vector = torch.cat([piece.detach().flatten() for piece in pieces])
    vector = torch.zeros(vector.shape) if vector.is_meta else vector.cpu()
    choose = PROJECTIONS[plan.config.projection].choose
    return {
        group: choose(padded(vector[plan.starts[group] :], bucket.shape.n_out), bucket.shape.n_in)
        for bucket in plan.buckets
        for group in bucket.members
    }


def padded(vector: Tensor, size: int) -> Tensor:
    """The first elements, followed by zeros where there are fewer: those of the last group that belong to no weight."""
    return torch.nn.functional.pad(vector[:size], (0, max(0, size - len(vector))))
