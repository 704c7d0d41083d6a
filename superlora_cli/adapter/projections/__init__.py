"""F: fixed projections from the N_in elements of a folded group to its N_out elements (Eq. 4, A.6).

Some of them are F_in too, from the trained numbers to the entries of the factors (`adapter.inner`).

One projection is one file here, named as it is in recipes, with a function

    def build(size: Size, draw: Draw, place: Place) -> Project

that draws what is frozen and returns the map (groups, N_in) → (groups, N_out). `docs/projections.md` adds one.
Nothing of a projection is stored in an adapter but the seed it is drawn from.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from superlora_cli.table import Later, Table

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Draw = Callable[[str], "np.random.RandomState"]  # role → the generator of that role
Place = Callable[[Any], "Tensor"]  # array → tensor where the parameters are, in their dtype if floating
Project = Callable[["Tensor"], "Tensor"]  # (groups, N_in) → (groups, N_out)


@dataclass(frozen=True)
class Size:
    """N_in and N_out of one projection, and whether the shrinkage of F is undone (`rescale`).

    `grid` is (rows, columns) of the matrix whose first N_out elements a spectral projection makes.
    """

    n_in: int
    n_out: int
    rescale: bool = True
    grid: tuple[int, int] | None = None

    @property
    def bits(self) -> int:
        """N = ceil(log2(max(N_in, N_out))): the transform's length is 2^N.

        >>> Size(100, 1000).bits, Size(1024, 1024).bits, Size(1, 1).bits
        (10, 10, 0)
        """
        return (max(self.n_in, self.n_out) - 1).bit_length()

    @property
    def matrix(self) -> tuple[int, int]:
        """`grid`, or the smallest square that holds N_out elements where there is none.

        >>> Size(3, 50).matrix, Size(3, 50, grid=(10, 5)).matrix
        ((8, 8), (10, 5))
        """
        side = math.isqrt(self.n_out - 1) + 1
        return self.grid or (side, side)


class Projection:
    """What every projection says of itself: a file's names, or an object's attributes; `build` is all it must have.

    Attributes:
        FULL_SIZE: it has N_in = N_out, so that there is no ratio.
        SPECTRAL: it sees a group as a matrix, `Size.grid`.
        NONLINEAR: its slope vanishes where it does, so that ΔW is taken as F(x) − F(x₀).
    """

    FULL_SIZE = False
    SPECTRAL = False
    NONLINEAR = False

    def held(self, size: Size) -> int:
        """Elements of the largest tensor that it is made of; by default N_out."""
        return size.n_out

    def build(self, size: Size, draw: Draw, place: Place) -> Project:
        """Draw what is frozen, and return the map (groups, N_in) → (groups, N_out)."""
        raise NotImplementedError


class _File(Projection):
    """A projection that is a file of this package."""

    def __init__(self, module: Any) -> None:
        own = {name: value for name, value in vars(module).items() if name in vars(Projection)}
        vars(self).update(own | {"__doc__": module.__doc__})


def files() -> dict[str, Later[Projection]]:
    """The projections that are files of this package, by name; each is imported when it is first looked up."""

    def load(name: str) -> Projection:
        return _File(importlib.import_module(f"{__name__}.{name}"))

    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: Later(partial(load, name)) for name in names}


PROJECTIONS: Table[Projection] = Table("projection", files())


def held(name: str, size: Size) -> int:
    """Elements of the largest tensor that a projection is made of.

    >>> held("dense", Size(10, 1000)), held("linear", Size(10, 1000)), held("identity", Size(1000, 1000))
    (10000, 1024, 0)
    """
    return PROJECTIONS[name].held(size)


def build(
    name: str, size: Size, seed: int, *, device: torch.device, dtype: torch.dtype, key: str = "projection"
) -> Project:
    """The projection `name`, drawn from (seed, `key`, role, N_in, N_out) and placed on `device`."""
    import numpy as np
    import torch

    from superlora_cli.adapter.prng import random_state

    def draw(role: str) -> np.random.RandomState:
        return random_state(seed, key, role, size.n_in, size.n_out)

    def place(array: Any) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    return PROJECTIONS[name].build(size, draw, place)


def is_nonlinear(name: str) -> bool:
    """Whether ΔW must be taken as F(x) − F(x₀), because F's slope vanishes where F does."""
    return PROJECTIONS[name].NONLINEAR
