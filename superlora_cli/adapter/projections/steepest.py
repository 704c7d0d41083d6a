"""F(x) has the numbers x at the N_in elements where the group's first gradients are largest in magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING

from superlora_cli.adapter.projections import largest
from superlora_cli.adapter.projections.largest import build as build
from superlora_cli.adapter.projections.largest import held as held

if TYPE_CHECKING:
    from torch import Tensor

CHOOSES = "gradients"


def choose(gradients: Tensor, count: int) -> Tensor:
    """The positions of a group's numbers in it, (n,) → (count,), in increasing order."""
    return largest.choose(gradients, count).sort().values
