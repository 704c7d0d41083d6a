"""Frozen randomness: the same seed and role give the same numbers on any machine, permanently.

numpy guarantees that the stream of `RandomState` never changes. Draws are keyed by seed and role, never by the order
in which modules are visited, so an adapter stores only a seed, and `header` the name of this generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

_undrawn = ContextVar("undrawn", default=False)


def random_state(seed: int, *role: object) -> np.random.RandomState:
    """The generator of one role, such as ("init", "b0_k1_A2").

    >>> random_state(0, "init", "A1").standard_normal(2).round(4).tolist()
    [2.1702, -0.785]
    """
    if _undrawn.get():
        return Undrawn(0)
    key = "/".join(map(str, (seed, *role))).encode()
    return np.random.RandomState(np.frombuffer(hashlib.sha256(key).digest(), dtype="<u4"))


@contextmanager
def undrawn() -> Iterator[None]:
    """Inside, generators return zeros of the right shape at once, for callers that need only sizes."""
    token = _undrawn.set(True)
    try:
        yield
    finally:
        _undrawn.reset(token)


class Undrawn(np.random.RandomState):
    """A generator of zeros, which take no memory until they are read."""

    def permutation(self, x: Any) -> Any:
        return np.zeros(x, np.int64)

    def standard_normal(self, size: Any = None) -> Any:
        return np.zeros(size)

    def randint(self, low: Any, high: Any = None, size: Any = None, dtype: Any = int) -> Any:
        return np.zeros(size, dtype)
