"""The three measures of A.4 are 1, 1 and 0 for equal updates, and what chance gives for unrelated ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from superlora_cli.reporting.geometry import PRINCIPAL, Spectrum, at_random, compare

OUT, IN = 14, 11
SEEDS, RANKS = st.integers(0, 2**31), st.integers(1, IN)


def update(seed: int, rank: int, *, out: int = OUT, inn: int = IN, dtype: torch.dtype = torch.float64) -> Tensor:
    """A product of two random factors, (out, inn)."""
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(n, rank, generator=generator, dtype=dtype) for n in (out, inn))
    return one @ other.T


def rotation(seed: int, n: int) -> Tensor:
    return torch.linalg.qr(update(seed, n, out=n, inn=n)).Q


@settings(deadline=None)
@given(SEEDS, RANKS)
def test_an_update_compared_with_itself(seed: int, rank: int) -> None:
    for dtype in (torch.float32, torch.float64):
        spectrum = Spectrum.of(update(seed, rank, dtype=dtype))
        found = compare(spectrum, spectrum)
        assert found.left == pytest.approx(1, abs=1e-12)
        assert found.right == pytest.approx(1, abs=1e-12)
        assert found.distance == 0
        assert found.vectors == min(rank, PRINCIPAL)


@settings(deadline=None)
@given(SEEDS, SEEDS, RANKS, RANKS)
def test_similarities_are_symmetric_and_within_bounds(one: int, other: int, rank: int, further: int) -> None:
    a, b = Spectrum.of(update(one, rank)), Spectrum.of(update(other, further))
    there, back = compare(a, b), compare(b, a)
    assert there[:2] == pytest.approx(back[:2], abs=1e-9)
    assert there.left is not None
    assert there.right is not None
    assert 0 <= there.left <= 1
    assert 0 <= there.right <= 1
    assert there.distance is not None
    assert there.distance >= 0


@settings(deadline=None)
@given(SEEDS, SEEDS)
def test_a_common_rotation_of_either_side_changes_nothing(one: int, other: int) -> None:
    a, b = update(one, IN), update(other, IN)
    plain = compare(Spectrum.of(a), Spectrum.of(b))
    left, right = rotation(one + 1, OUT), rotation(other + 2, IN)
    turned = compare(Spectrum.of(left @ a @ right), Spectrum.of(left @ b @ right))
    assert turned == pytest.approx(plain, abs=1e-6)


@settings(deadline=None)
@given(SEEDS, SEEDS, st.floats(0.1, 10))
def test_subspaces_ignore_scale_and_swap_sides_with_the_weight(one: int, other: int, factor: float) -> None:
    a, b = update(one, IN), update(other, IN)
    plain, scaled = compare(Spectrum.of(a), Spectrum.of(b)), compare(Spectrum.of(a), Spectrum.of(-factor * b))
    assert scaled[:2] == pytest.approx(plain[:2], abs=1e-9)
    turned = compare(Spectrum.of(a.T), Spectrum.of(b.T))
    assert (turned.right, turned.left) == pytest.approx(plain[:2], abs=1e-9)


def test_the_spectral_norm_would_not_detect_half_a_subspace() -> None:
    """Of five common dimensions two: √(2/5), where the largest singular value alone would be 1/√5 at any number."""
    identity = torch.eye(10, dtype=torch.float64)
    one, other = identity[:, :5], identity[:, 3:8]
    found = compare(Spectrum.of(one @ identity[:5]), Spectrum.of(other @ identity[:5]))
    assert found.left == pytest.approx(math.sqrt(2 / 5))
    assert found.right == pytest.approx(1)


def test_unrelated_updates_are_as_near_as_random_subspaces() -> None:
    """E d² = k/n, since E UUᵀ = (k/n)·I for a uniform subspace; equal, unrelated norms are √2 apart."""
    out, inn, trials = 48, 64, 60
    pairs = [
        compare(*(Spectrum.of(update(seed, inn, out=out, inn=inn)) for seed in (2 * trial, 2 * trial + 1)))
        for trial in range(trials)
    ]
    for n, values in ((out, [pair.left for pair in pairs]), (inn, [pair.right for pair in pairs])):
        mean_square = sum(value**2 for value in values if value is not None) / trials
        assert math.sqrt(mean_square) == pytest.approx(at_random(n), rel=0.1)
    distances = [pair.distance for pair in pairs if pair.distance is not None]
    assert sum(distances) / trials == pytest.approx(math.sqrt(2), rel=0.03)


def test_an_update_that_is_zero() -> None:
    zero, some = Spectrum.of(torch.zeros(OUT, IN)), Spectrum.of(update(0, 3))
    assert compare(some, zero) == (None, None, 1, 0)
    assert compare(zero, some) == (None, None, None, 0)


def test_a_convolution_is_seen_as_out_by_everything_else() -> None:
    flat = update(0, 8, out=6, inn=36)
    assert torch.equal(Spectrum.of(flat.view(6, 4, 3, 3)).delta, flat)
