"""The fast Walsh–Hadamard transform as a few matrix products.

H_{2^N} is a Kronecker power, so it can be applied as small dense Hadamard matrices along the axes of a reshaped
vector: 2^20 = 32 · 32 · 32 · 32 takes four products with H₃₂, each at the speed of a matrix product and with one
pass over memory, where a butterfly takes 20 passes.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from superlora_cli.adapter.modes import lasting
from superlora_cli.errors import UsageError

LARGEST = 5  # log2 of the largest block: H₃₂, by benchmarks/fwht.py


def hadamard(bits: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The orthonormal H_{2^bits} = H₂^{⊗bits}, symmetric, (2^bits, 2^bits); H₂ = 1/√2 [[1, 1], [1, −1]].

    >>> hadamard(1, dtype=torch.float64) * 2**0.5
    tensor([[ 1.,  1.],
            [ 1., -1.]], dtype=torch.float64)
    """
    index = torch.arange(2**bits, device="cpu")
    both = index[:, None] & index[None, :]
    parity = torch.zeros_like(both)
    for bit in range(bits):
        parity ^= (both >> bit) & 1
    signs = 1 - 2 * parity
    return (signs.double() / 2 ** (bits / 2)).to(device, dtype)


@lru_cache(maxsize=64)
def _block(bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with lasting(device):
        return hadamard(bits, dtype=dtype, device=device)


def forget_blocks() -> None:
    """Drop the cached blocks: they may have been created without values."""
    _block.cache_clear()


def transform(x: Tensor) -> Tensor:
    """x H along the last axis, (*b, 2^N) → (*b, 2^N), without gradient; bfloat16 is computed in float32.

    Each product takes the leading axis of (2^k, 2^(N−k)) to the end, transformed; after all of them the axes are in
    order again. H is its own inverse and its own adjoint.

    Raises:
        UsageError: the length is not a power of two.
    """
    length = x.shape[-1]
    bits = length.bit_length() - 1
    if length != 1 << bits:
        raise UsageError(f"a Walsh–Hadamard transform needs a power of two, not {length:,} elements")
    batch, dtype = x.shape[:-1], x.dtype
    work = x.reshape(-1, length)
    if dtype in (torch.bfloat16, torch.float16):
        work = work.float()
    for size in block_sizes(bits):
        block = _block(size, work.dtype, work.device)
        # (b, 32, 2^15).mT @ (32, 32) -> (b, 2^15, 32): transformed and moved to the end
        work = (work.view(len(work), 1 << size, -1).mT @ block).view(len(work), length)
    return work.view(*batch, length).to(dtype)


def block_sizes(bits: int) -> list[int]:
    """log2 of the block sizes for 2^bits, as equal as possible: 20 → [5, 5, 5, 5], 22 → [5, 5, 4, 4, 4]."""
    if not bits:
        return []
    count = -(-bits // LARGEST)
    return [bits // count + (i < bits % count) for i in range(count)]
