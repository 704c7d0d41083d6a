"""Frozen randomness: the same seed and role give the same numbers on any machine, for ever.

numpy freezes the stream of `RandomState` by contract. Draws are keyed by seed and role, never by the order
in which modules happen to be visited, so an adapter stores a seed and this generator's name, nothing else.
"""

from __future__ import annotations

import hashlib

import numpy as np

GENERATOR = "numpy.RandomState/sha256"


def random_state(seed: int, *role: object) -> np.random.RandomState:
    """The generator of one role, such as ("init", "b0_k1_A2").

    >>> random_state(0, "init", "A1").standard_normal(2).round(4).tolist()
    [2.1702, -0.785]
    """
    key = "/".join(map(str, (seed, *role))).encode()
    return np.random.RandomState(np.frombuffer(hashlib.sha256(key).digest(), dtype="<u4"))
