"""The core C of a unit C ×_1 A_1 ... ×_M A_M: what it stores, and how it combines with the plane factors (Eq. 3).

Each core is an object in `CORES`, under its name in recipes; no other code refers to a core by name. A dense core
makes the unit a Tucker decomposition, a superdiagonal one (of ones, or of trained λ) a CP decomposition.
`docs/extend.md` shows how to add one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from superlora_cli.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from superlora_cli.adapter.shapes import UnitShape

Ranks = Sequence[int | Literal["full"]]
Factors = Mapping[str, "Tensor"]  # `core` (*b, ...) if stored, and `A1` ... `AM`, (*b, d_m, r_m) each


class Core:
    """The interface of a core.

    Attributes:
        stored: it has trained entries, stored as the tensor `core`.
        starts_at_one: its entries start as ones instead of normal numbers divided by `spread`.
        absorbs_terms: a sum of several units equals one unit of higher rank, so `terms` alone would add nothing.
        closed_form: the decomposition that yields this core: `tucker`, `cp`, or None if there is none.
    """

    stored = True
    starts_at_one = False
    absorbs_terms = False
    closed_form: Literal["tucker", "cp"] | None = None

    def why_not(self, ranks: Ranks) -> tuple[str, str] | None:
        """Why this core cannot have these ranks (one per mode), and what to use instead; None if it can."""
        return None

    def shape(self, unit: UnitShape) -> tuple[int, ...]:
        """Shape of the stored core, () where nothing is stored."""
        raise NotImplementedError

    def spread(self, unit: UnitShape) -> float:
        """The divisor of the initial normal entries that gives the unit's tensor entries of unit scale."""
        return 1.0

    def expand(self, unit: UnitShape, tensors: Factors) -> Tensor:
        """The unit's tensor C ×_1 A_1 ... ×_M A_M, batched: (*b, d_1, ..., d_M)."""
        raise NotImplementedError

    def explicit(self, unit: UnitShape, tensors: Factors) -> Tensor:
        """C as an explicit tensor without batch axes: (r_1, ..., r_M), or the full side for a mode without factor."""
        raise NotImplementedError

    def first_mode(self, unit: UnitShape, tensors: Factors) -> Tensor:
        """C ×_1 A_1 of a unit of order 2 or 3: (*b, d_1, r_2), or (*b, d_1, r_2, r_3)."""
        raise NotImplementedError


class Dense(Core):
    """A full tensor (r_1, ..., r_M), with d_m instead of r_m for a mode without factor: Tucker, or the whole unit."""

    closed_form = "tucker"

    def shape(self, unit: UnitShape) -> tuple[int, ...]:
        return tuple(rank or side for rank, side in zip(unit.ranks, unit.sides, strict=True))

    def spread(self, unit: UnitShape) -> float:
        """√r^(M−1), with the geometric mean of unequal ranks; 1 if the core is the whole unit."""
        ranks = unit.core_shape
        return 1.0 if unit.is_dense else float(math.prod(ranks) ** ((len(ranks) - 1) / (2 * len(ranks))))

    def expand(self, unit: UnitShape, tensors: Factors) -> Tensor:
        """Mode products, starting from the small core: each turns the leading axis r_m into a trailing d_m."""
        core = tensors["core"]  # (*b, 4, 4, 4)
        batch = core.shape[: -len(unit.sides)]
        for m, rank in enumerate(unit.ranks, 1):
            leading = rank or unit.sides[m - 1]
            rows = core.reshape(*batch, leading, -1).mT  # (*b, 16, 4): the other axes in front, axis m last
            core = rows @ tensors[f"A{m}"].mT if rank else rows  # (*b, 16, 4) @ (4, 153) -> (*b, 16, 153)
        return core.reshape(*batch, *unit.sides)  # after M rounds the axes are in order again

    def explicit(self, unit: UnitShape, tensors: Factors) -> Tensor:
        return tensors["core"]

    def first_mode(self, unit: UnitShape, tensors: Factors) -> Tensor:
        core = tensors["core"]
        if "A1" not in tensors:
            return core
        if len(unit.sides) == 2:
            return tensors["A1"] @ core
        batch, rows = core.shape[: -len(unit.sides)], core.flatten(-len(unit.sides) + 1)  # (*b, r_1, r_2·r_3)
        made = rows.mT @ tensors["A1"].mT  # (*b, r_2·r_3, d_1)
        return made.mT.reshape(*batch, unit.sides[0], *core.shape[-len(unit.sides) + 1 :])


class Superdiagonal(Core):
    """Zero except for the entries (r, ..., r), which are λ_r: CP, Σ_r λ_r a_1r ∘ ... ∘ a_Mr.

    Args:
        trained: λ is a stored, trained vector (r,); otherwise all its entries are 1.
    """

    starts_at_one = True
    closed_form = "cp"

    def __init__(self, name: str, *, trained: bool) -> None:
        self.name, self.stored, self.absorbs_terms = name, trained, not trained

    def why_not(self, ranks: Ranks) -> tuple[str, str] | None:
        if "full" in ranks:
            return f"core '{self.name}' with a full mode", "core: dense, which a mode without factor needs"
        if len(set(ranks)) > 1:
            return f"a core '{self.name}' with ranks {list(ranks)}", "equal ranks, or dense"
        return None

    def shape(self, unit: UnitShape) -> tuple[int, ...]:
        return unit.ranks[:1] if self.stored else ()

    def _first(self, tensors: Factors) -> Tensor:
        """A_1 with λ in it: (*b, d, r) * (*b, 1, r)."""
        return tensors["A1"] * tensors["core"].unsqueeze(-2) if self.stored else tensors["A1"]

    def expand(self, unit: UnitShape, tensors: Factors) -> Tensor:
        """As one matrix product of two Khatri–Rao products, each of half the planes."""
        planes = [self._first(tensors), *(tensors[f"A{m}"] for m in range(2, len(unit.sides) + 1))]
        half = max(1, len(planes) // 2)
        left, right = _khatri_rao(planes[:half]), _khatri_rao(planes[half:])
        return (left @ right.mT).reshape(*left.shape[:-2], *unit.sides)

    def explicit(self, unit: UnitShape, tensors: Factors) -> Tensor:
        core = tensors["A1"].new_zeros(unit.ranks)
        for r in range(unit.ranks[0]):
            core[(r,) * len(unit.ranks)] = tensors["core"][r] if self.stored else 1.0
        return core

    def first_mode(self, unit: UnitShape, tensors: Factors) -> Tensor:
        first = self._first(tensors)
        return first if len(unit.sides) == 2 else first.diag_embed()


def _khatri_rao(planes: list[Tensor]) -> Tensor:
    """Column-wise Kronecker product: (*b, d_1, r), (*b, d_2, r) -> (*b, d_1·d_2, r)."""
    product = planes[0]
    for plane in planes[1:]:
        product = (product.unsqueeze(-2) * plane.unsqueeze(-3)).flatten(-3, -2)
    return product


WHOLE = "dense"  # the core that can be a whole unit, without any plane factor
CORES: Table[Core] = Table(
    "core",
    {
        "identity": Superdiagonal("identity", trained=False),
        "diagonal": Superdiagonal("diagonal", trained=True),
        "dense": Dense(),
    },
)


def usual(order: int, ranks: Ranks) -> str:
    """The default core: Tucker (`dense`) from order 3 on or if a mode has no factor, else CP (`identity`)."""
    return "dense" if order >= 3 or "full" in ranks else "identity"
