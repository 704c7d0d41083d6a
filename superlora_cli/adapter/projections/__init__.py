"""F: fixed projections from the N_in elements of a folded group to its N_out elements (Eq. 4, A.6).

Some of them also serve as F_in, from the trained numbers to the entries of the factors (`adapter.inner`).

Each projection is one file here, with the same name as in recipes and a function

    def build(size: Size, draw: Draw, place: Place) -> Project

that draws the frozen tensors and returns the map (groups, N_in) → (groups, N_out). `docs/projections.md` shows how to
add one. An adapter stores only the seed of its projection.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from superlora_cli.table import Later, Table

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Draw = Callable[[str], "np.random.RandomState"]  # role → the generator of that role
Place = Callable[[Any], "Tensor"]  # array → tensor on the device of the parameters, in their dtype if floating
Project = Callable[..., "Tensor"]  # (groups, N_in) → (groups, N_out)


@dataclass(frozen=True)
class Size:
    """N_in and N_out of one projection, and whether F is rescaled to keep the norm (`rescale`).

    `grid` is the shape (rows, columns) of the matrix whose first N_out elements a spectral projection returns.
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
        """`grid`, or by default the smallest square with at least N_out elements.

        >>> Size(3, 50).matrix, Size(3, 50, grid=(10, 5)).matrix
        ((8, 8), (10, 5))
        """
        side = math.isqrt(self.n_out - 1) + 1
        return self.grid or (side, side)


class Projection:
    """The interface of a projection, as names in a file or attributes of an object; only `build` is required.

    Attributes:
        FULL_SIZE: it has N_in = N_out, so there is no ratio.
        SPECTRAL: it treats a group as a matrix, `Size.grid`.
        NONLINEAR: its slope vanishes at its zero, so ΔW is F(x) − F(x₀).
        CHOOSES: it places its numbers at positions that `choose` finds, group by group, in the base's `weights`, or in
            the first `gradients`, whose positions are stored; empty for any other F.
    """

    FULL_SIZE = False
    SPECTRAL = False
    NONLINEAR = False
    CHOOSES: Literal["", "weights", "gradients"] = ""

    def held(self, size: Size) -> int:
        """Elements of its largest frozen tensor; by default N_out."""
        return size.n_out

    def build(self, size: Size, draw: Draw, place: Place) -> Project:
        """Draw the frozen tensors, and return the map (groups, N_in) → (groups, N_out)."""
        raise NotImplementedError

    def choose(self, weights: Tensor, count: int) -> Tensor:
        """With `CHOOSES`: the positions (count,) of a group's numbers, from its weights or gradients (n,)."""
        raise NotImplementedError


class _File(Projection):
    """A projection in a file of this package."""

    def __init__(self, module: Any) -> None:
        own = {name: value for name, value in vars(module).items() if name in vars(Projection)}
        vars(self).update(own | {"__doc__": module.__doc__})


def files() -> dict[str, Later[Projection]]:
    """The projections in files of this package, by name; each is imported on first use."""

    def load(name: str) -> Projection:
        return _File(importlib.import_module(f"{__name__}.{name}"))

    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: Later(partial(load, name)) for name in names}


PROJECTIONS: Table[Projection] = Table("projection", files())


def held(name: str, size: Size) -> int:
    """Elements of the largest frozen tensor of a projection.

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
    """Whether ΔW must be F(x) − F(x₀), because the slope of F vanishes at its zero."""
    return PROJECTIONS[name].NONLINEAR
