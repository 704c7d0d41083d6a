"""When two adapters are nearly the same: quantised layers need not repeat their sums bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def nearly(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two files have the same tensors but for rounding."""
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], rtol=1e-2, atol=1e-3) for k in one)
