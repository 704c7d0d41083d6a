"""The nearest low-rank matrix is as near as its singular values say, and its error is the one it has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superlora_cli.adapter.lowrank import approximate, check_limits, nearest, whole_error
from superlora_cli.adapter.updates import Dense, LowRank
from superlora_cli.errors import RunError, UsageError


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 99), energy=st.floats(0.01, 1))
def test_energy_is_kept_and_no_smaller_rank_would_keep_it(rows: int, columns: int, seed: int, energy: float) -> None:
    delta = matrix(rows, columns, seed)
    found = nearest(delta, energy=energy)
    assert found.error**2 <= 1 - energy + 1e-5
    assert found.error == pytest.approx(float((delta - found.update.dense()).norm() / delta.norm()), abs=1e-6)
    if found.rank > 1:
        assert nearest(delta, rank=found.rank - 1).error ** 2 > 1 - energy - 1e-5


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_rank_misses_the_singular_values_behind_it(rows: int, columns: int, rank: int, seed: int) -> None:
    delta = matrix(rows, columns, seed)
    found = nearest(delta, rank=rank)
    values = torch.linalg.svdvals(delta)
    assert found.rank == min(rank, rows, columns)
    assert found.error == pytest.approx(float(values[rank:].norm() / values.norm()), abs=2e-6)


def test_own_factors_are_kept_as_they_are_unless_less_is_asked_for() -> None:
    own = LowRank(matrix(8, 3), matrix(3, 6, 1))
    found = approximate(own)
    assert found.update is own
    assert (found.error, found.rank) == (0, 3)
    assert found.norm == pytest.approx(float(own.dense().norm()), rel=1e-5)
    assert approximate(own, rank=3).update is own
    assert approximate(own, rank=2).rank == 2
    assert approximate(own, rank=2).error > 0
    assert approximate(own, energy=1.0).error < 1e-6


def test_a_hidden_low_rank_is_found() -> None:
    found = approximate(Dense(matrix(20, 3) @ matrix(3, 15, 1)), energy=1.0)
    assert found.rank == 3
    assert found.error < 1e-6


def test_no_update_has_rank_one_and_no_error() -> None:
    found = approximate(Dense(torch.zeros(4, 5)))
    assert (found.rank, found.error, found.norm) == (1, 0, 0)
    assert not found.update.dense().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_float32_at_least(dtype: torch.dtype) -> None:
    delta = matrix(6, 5).to(dtype)
    found = nearest(delta)
    assert found.update.left.dtype == torch.promote_types(dtype, torch.float32)
    assert found.error < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(RunError):
        nearest(torch.full((2, 2), value))
    with pytest.raises(RunError):
        approximate(LowRank(torch.full((2, 1), value), torch.ones(1, 2)))


@pytest.mark.parametrize("limits", [(0, None), (-1, None), (None, 0.0), (None, 2.0), (None, float("nan"))])
def test_impossible_limits_are_refused(limits: tuple[int | None, float | None]) -> None:
    with pytest.raises(UsageError):
        check_limits(*limits)


def test_the_error_of_all_is_that_of_one_long_vector() -> None:
    assert whole_error([(3.0, 0.1), (4.0, 0.2)]) == pytest.approx(((0.3**2 + 0.8**2) / 25) ** 0.5)
    assert whole_error([(0.0, 0.0)]) == 0
