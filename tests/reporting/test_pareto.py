"""The Pareto front is what its definition says."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from superlora_cli.reporting.pareto import front

NUMBERS = st.one_of(st.integers(0, 6).map(float), st.floats())  # small integers, so that there are ties
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30)


def naive(points: list[tuple[float, float]], sign: int) -> set[int]:
    """Every pair of points is compared."""

    def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
        cheaper, better = one[0] <= other[0], sign * one[1] >= sign * other[1]
        return cheaper and better and one != other

    finite = [index for index, point in enumerate(points) if all(map(math.isfinite, point))]
    return {i for i in finite if not any(dominates(points[j], points[i]) for j in finite)}


@given(POINTS, st.booleans())
def test_the_front_is_the_points_that_none_dominates(points: list[tuple[float, float]], higher: bool) -> None:
    costs, values = [cost for cost, _ in points], [value for _, value in points]
    found = front(costs, values, higher=higher)
    assert set(found) == naive(points, 1 if higher else -1)
    assert found == sorted(found, key=lambda index: (costs[index], index))


def test_no_points_have_an_empty_front() -> None:
    assert front([], [], higher=True) == []
    assert front([1.0], [math.nan], higher=True) == []
