"""The fast transform is the Walsh–Hadamard matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as scipy_hadamard

from superlora_cli.adapter import naive
from superlora_cli.adapter.hadamard import block_sizes, hadamard, transform
from superlora_cli.errors import UsageError


@pytest.mark.parametrize("bits", range(12))
def test_transform_is_scipys_matrix(bits: int) -> None:
    x = torch.randn(3, 2**bits, dtype=torch.float64)
    matrix = torch.from_numpy(scipy_hadamard(2**bits)).double() / 2 ** (bits / 2)
    torch.testing.assert_close(transform(x), x @ matrix)
    torch.testing.assert_close(hadamard(bits, dtype=torch.float64), matrix)
    torch.testing.assert_close(naive.hadamard(bits), matrix)
    torch.testing.assert_close(naive.butterfly(x), x @ matrix)


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(0, 16), batch=st.lists(st.integers(1, 3), max_size=2), seed=st.integers(0, 99))
def test_transform_is_its_own_inverse_and_keeps_norms(bits: int, batch: list[int], seed: int) -> None:
    x = torch.randn(*batch, 2**bits, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = transform(x)
    assert y.shape == x.shape
    torch.testing.assert_close(transform(y), x)
    torch.testing.assert_close(y.norm(), x.norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_low_precision_is_near_float64(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(2, 2**14, dtype=torch.float64)
    y = transform(x.to(dtype))
    assert y.dtype == dtype
    exact = transform(x.to(dtype).double())
    assert (y.double() - exact).norm() / exact.norm() < tolerance


def test_backward_is_the_transform_itself() -> None:
    x, given = torch.randn(2, 2, 32, dtype=torch.float64).requires_grad_()
    (back,) = torch.autograd.grad(transform(x), x, given)
    torch.testing.assert_close(back, transform(given))


def test_blocks_are_even_and_small() -> None:
    assert all(sum(block_sizes(bits)) == bits and max(block_sizes(bits)) <= 6 for bits in range(1, 28))


def test_other_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="not 12 elements"):
        transform(torch.zeros(12))
