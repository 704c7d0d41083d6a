"""Kernels of different sizes do not share a group that keeps kernels."""

from __future__ import annotations

import pytest
from torch import nn

from superlora_cli import attach
from superlora_cli.errors import UsageError


def test_kernels_of_a_group_have_one_size() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3))
    with pytest.raises(UsageError, match="kernels of 1 and 9 elements in a group"):
        attach(model, "*", method="atoms", groups=1)
