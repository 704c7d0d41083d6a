"""The Pareto front: the settings for which no other is both smaller and better."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(costs: Sequence[float], values: Sequence[float], *, higher: bool) -> list[int]:
    """Indices of the points that no other point dominates, by cost and then by index.

    A point is dominated by one that costs no more and is no worse, and is strictly better in one of the two. Equal
    points are all on the front or none is; a point that is not finite never is.

    Args:
        costs, values: one of each per point.
        higher: whether higher values are better.

    >>> front([10, 20, 30, 40], [0.5, 0.4, 0.9, 0.9], higher=True)
    [0, 2]
    """
    sign = 1 if higher else -1
    points = [
        (cost, -sign * value, index)
        for index, (cost, value) in enumerate(zip(costs, values, strict=True))
        if math.isfinite(cost) and math.isfinite(value)
    ]
    found, best = [], (math.nan, math.inf)  # cost and loss of the last point of the front
    for cost, loss, index in sorted(points):
        if loss < best[1] or (cost, loss) == best:
            found.append(index)
            best = cost, loss
    return found
