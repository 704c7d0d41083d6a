"""How a file stores positions that cannot be found again from the base: Elias–Fano coded, as two rows of bits.

Of k increasing positions below n, each keeps its lowest ⌊log₂(n / k)⌋ bits; the rest of position number i sets bit
number rest + i of the upper row. That is within half a bit or so of the fewest bits that k of n positions need.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from superlora_cli.adapter.shapes import position_bits


def pack(positions: Tensor, n: int) -> Tensor:
    """Increasing positions below `n`, (groups, k), as bytes (groups, …).

    >>> pack(torch.tensor([[0, 5, 9]]), 10)
    tensor([[73,  6]], dtype=torch.uint8)
    """
    rows = positions.cpu().numpy()
    low, upper = position_bits(rows.shape[1], n)
    bits = np.zeros((len(rows), upper), dtype=np.uint8)
    np.put_along_axis(bits, (rows >> low) + np.arange(rows.shape[1]), 1, axis=1)
    lower = (rows[..., None] >> np.arange(low)) & 1
    both = np.concatenate([bits, lower.reshape(len(rows), -1).astype(np.uint8)], axis=1)
    return torch.from_numpy(np.packbits(both, axis=1, bitorder="little"))


def unpack(packed: Tensor, k: int, n: int) -> Tensor:
    """The inverse of `pack`.

    Raises:
        ValueError: these are not `k` increasing positions below `n`.
    """
    if packed.dtype != torch.uint8:
        raise ValueError(f"positions are stored as {packed.dtype}")
    low, upper = position_bits(k, n)
    bits = np.unpackbits(packed.numpy(), axis=1, count=upper + low * k, bitorder="little")
    if not (bits[:, :upper].sum(1) == k).all():
        raise ValueError(f"not {k} positions")
    high = bits[:, :upper].nonzero()[1].reshape(-1, k) - np.arange(k)
    lower = bits[:, upper:].reshape(len(bits), k, low).astype(np.int64) @ (1 << np.arange(low))
    positions = (high << low) | lower
    if (np.diff(positions) <= 0).any() or (positions >= n).any():
        raise ValueError(f"not increasing positions below {n:,}")
    return torch.from_numpy(positions)
