"""F(x) has the numbers x at the N_in elements where the group's base weights are largest in magnitude (SHiRA's WM)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from superlora_cli.adapter.projections import Draw, Place, Project, Size

if TYPE_CHECKING:
    from torch import Tensor

CHOOSES = "weights"


def held(size: Size) -> int:
    """The positions of one group."""
    return size.n_in


def choose(weights: Tensor, count: int) -> Tensor:
    """The positions of a group's numbers in it, (n,) → (count,): of equal weights the first."""
    return weights.abs().sort(descending=True, stable=True).indices[:count]


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Nothing is drawn; the map also takes the positions, (groups, N_in)."""
    from superlora_cli.adapter.projections._placed import placed

    return lambda x, positions: placed(x, positions, size)
