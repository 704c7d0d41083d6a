"""Common part of the projections that place numbers at single elements of a group: all other elements are zero."""

from __future__ import annotations

import math

from torch import Tensor

from superlora_cli.adapter.projections import Size


def placed(x: Tensor, positions: Tensor, size: Size) -> Tensor:
    """(groups, N_in) → (groups, N_out), at `positions` (N_in,) of every group or (groups, N_in)."""
    x = x * math.sqrt(size.n_out / size.n_in) if size.rescale else x
    return x.new_zeros(len(x), size.n_out).scatter(-1, positions.expand(x.shape), x)
