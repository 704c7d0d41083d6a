"""The shapes of an adapter: units, groups, buckets of equal groups, and the whole plan, in integers only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.multiplied import made
from superlora_cli.adapter.targets import TargetShape

T = TypeVar("T")
THETA = "theta"  # the only trained tensor with an F_in


@dataclass(frozen=True)
class UnitShape:
    """One tensor C ×_1 A_1 ... ×_M A_M: its sides (d_1, ..., d_M) and ranks (r_1, ..., r_M).

    A rank of 0 marks a mode without factor (the core has that side in full). The plane factors of the modes in
    `diagonals` are multiplied by a diagonal matrix D_m each; what `frozen` names is not trained.

    >>> UnitShape(sides=(153, 153, 153), ranks=(4, 4, 4), core="dense").tensors
    {'core': (4, 4, 4), 'A1': (153, 4), 'A2': (153, 4), 'A3': (153, 4)}
    """

    sides: tuple[int, ...]
    ranks: tuple[int, ...]
    core: str
    diagonals: tuple[int, ...] = ()
    frozen: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """d_1 · ... · d_M."""
        return math.prod(self.sides)

    @property
    def is_dense(self) -> bool:
        """Whether no mode has a factor: the unit is its core."""
        return not any(self.ranks)

    @property
    def core_shape(self) -> tuple[int, ...]:
        """Shape of the stored core, () where nothing is stored."""
        return CORES[self.core].shape(self)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """{C, A} by name: `core`, and the plane factors `A1` ... `AM` of shape (d_m, r_m)."""
        core = {"core": self.core_shape} if self.core_shape else {}
        planes = {f"A{m}": (d, r) for m, (d, r) in enumerate(zip(self.sides, self.ranks, strict=True), 1) if r}
        return core | planes

    @property
    def trained(self) -> dict[str, tuple[int, ...]]:
        """The trained ones of `tensors`, and the diagonals `D1` ... `DM` of shape (d_m,)."""
        trained = {name: shape for name, shape in self.tensors.items() if name not in self.frozen}
        return trained | {f"D{m}": (self.sides[m - 1],) for m in self.diagonals}

    @property
    def zeroed(self) -> str | None:
        """The trained tensor that starts at zero: a plane, as in LoRA, else a diagonal or the core.

        >>> UnitShape((8, 8), (2, 2), "dense").zeroed, UnitShape((8, 8), (2, 2), "dense", frozen=("A1", "A2")).zeroed
        ('A1', 'core')
        """
        return min(self.trained, key=lambda name: ("A", "D", "c").index(name[0]), default=None)

    @property
    def informed(self) -> tuple[str, ...]:
        """What the first batches can start: the trained planes, and a core with every mode to itself, but for `zeroed`.

        >>> UnitShape((8, 8), (2, 2), "dense").informed, UnitShape((8, 8), (2, 2), "identity").informed
        (('core', 'A2'), ('A2',))
        """
        whole = tuple(rank or side for side, rank in zip(self.sides, self.ranks, strict=True))
        planes = [name for name in self.trained if name.startswith("A")]
        cores = ["core"] if "core" in self.trained and self.core_shape == whole else []
        return tuple(name for name in (*cores, *planes) if name != self.zeroed)

    @property
    def core_params(self) -> int:
        """Trained parameters in the core of a factored unit; the elements of a dense unit do not count."""
        return 0 if self.is_dense else math.prod(self.trained.get("core", (0,)))

    @property
    def params(self) -> int:
        """Trained entries: Σ r·d over the modes, plus the core's and the diagonals'."""
        return sum(math.prod(shape) for shape in self.trained.values())


@dataclass(frozen=True)
class GroupShape:
    """The structure of one group: K units (left first), summed over `terms`, cropped, projected.

    Attributes:
        units: the K units of one term.
        terms: number of products that are summed.
        sides: the folded shape.
        crop: whether a Kronecker product larger than `sides` is cropped axis by axis, or flattened as it is.
        n_in: elements that enter F: the first ones of the flattened, cropped tensor.
        n_out: elements that leave F.
        grid: (rows, columns) that a spectral F's frequencies belong to; None for any other F.
    """

    units: tuple[UnitShape, ...]
    terms: int
    sides: tuple[int, ...]
    crop: bool
    n_in: int
    n_out: int
    grid: tuple[int, int] | None = None

    @property
    def zeroed(self) -> tuple[int, str]:
        """(number k of the unit, name of the tensor) that starts at zero: of the last unit that has one."""
        return max((k, unit.zeroed) for k, unit in enumerate(self.units, 1) if unit.zeroed)

    @property
    def extent(self) -> tuple[int, ...]:
        """The shape whose first n_in elements belong to the group: `sides`, or an uncropped Kronecker product."""
        product = (math.prod(own) for own in zip(*(unit.sides for unit in self.units), strict=True))
        return self.sides if self.crop or self.units[-1].sides == self.sides else tuple(product)

    @property
    def params(self) -> int:
        """Trained entries of one group."""
        return self.terms * sum(unit.params for unit in self.units)


@dataclass(frozen=True)
class Unit:
    """One of the K units of a bucket; it names its tensors: `b0_k1_A2` is A_2 of unit 1 of bucket 0.

    Attributes:
        bucket: the bucket's number.
        k: the unit's number in a product, from 1, left first.
    """

    bucket: int
    k: int
    shape: UnitShape
    batch: tuple[int, int]  # (groups, terms)

    def name(self, part: str) -> str:
        """The name of `core`, of a plane factor `A1` ... `AM` or of a diagonal `D1` ... `DM`."""
        return f"b{self.bucket}_k{self.k}_{part}"

    def of(self, factors: Mapping[str, T]) -> dict[str, T]:
        """Its own {C, A} by part, from all factors by name."""
        return {part: factors[self.name(part)] for part in self.shape.tensors}

    @property
    def trained(self) -> dict[str, tuple[int, ...]]:
        """Part → shape of every trained entry, (groups, terms, ...)."""
        return {part: self.batch + shape for part, shape in self.shape.trained.items()}


@dataclass(frozen=True)
class Bucket:
    """Groups of equal shape: one batched tensor per factor, (groups, terms, ...)."""

    number: int
    shape: GroupShape
    members: tuple[int, ...]  # indices of the groups, in order

    @property
    def units(self) -> tuple[Unit, ...]:
        """The K units of a term, left first."""
        batch = (len(self.members), self.shape.terms)
        return tuple(Unit(self.number, k, shape, batch) for k, shape in enumerate(self.shape.units, 1))

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every trained entry."""
        return {unit.name(part): shape for unit in self.units for part, shape in unit.trained.items()}

    @property
    def positions(self) -> str:
        """The name of the positions of its groups' numbers, where a file stores them."""
        return f"b{self.number}_positions"

    @property
    def zeroed(self) -> str:
        """The name of the tensor that starts at zero."""
        k, part = self.shape.zeroed
        return self.units[k - 1].name(part)


@dataclass(frozen=True)
class Piece:
    """Rows of θ, and the tensors that F_in makes from them.

    Attributes:
        start, count: the rows of θ (rows, d).
        tensors: name → shape; each row makes an equal share of the entries of all of them, one tensor after another.
    """

    start: int
    count: int
    tensors: dict[str, tuple[int, ...]]

    @property
    def sizes(self) -> list[int]:
        """Entries of each tensor that one row makes."""
        return [math.prod(shape) // self.count for shape in self.tensors.values()]


@dataclass(frozen=True)
class Plan:
    """All shapes of an adapter, and the positions of its groups in the vector of N elements."""

    config: AdapterConfig
    targets: tuple[TargetShape, ...]
    starts: tuple[int, ...]  # where each group starts in the vector
    buckets: tuple[Bucket, ...]

    @cached_property
    def made(self) -> tuple[TargetShape, ...]:
        """What the units make for each target: ΔW, or with `multiply` what the base is multiplied by."""
        return made(self.config.multiply, self.config.block, self.targets)

    @property
    def elements(self) -> int:
        """N."""
        return sum(target.elements for target in self.made)

    @property
    def entries(self) -> dict[str, tuple[int, ...]]:
        """The entries of {C, A} that are trained, or made by F_in from θ: name → shape."""
        return {name: shape for bucket in self.buckets for name, shape in bucket.tensors.items()}

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units of all buckets."""
        return tuple(unit for bucket in self.buckets for unit in bucket.units)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """How F_in divides the entries; () without an F_in."""
        inner = self.config.inner
        if inner is None:
            return ()
        if inner.per == "all":
            return (Piece(0, 1, self.entries),)
        found: list[Piece] = []
        for bucket in self.buckets:
            tensors = bucket.tensors
            parts = [tensors] if inner.per == "group" else [{name: shape} for name, shape in tensors.items()]
            for part in parts:
                start = found[-1].start + found[-1].count if found else 0
                found.append(Piece(start, len(bucket.members), part))
        return tuple(found)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every trained tensor: name → shape. With an F_in it is θ alone, (rows, d)."""
        if self.config.inner is None:
            return self.entries
        last = self.pieces[-1]
        return {THETA: (last.start + last.count, self.config.inner.numbers(sum(last.sizes)))}

    @property
    def params(self) -> int:
        """Trained parameters of the adapter, including cores, excluding the head."""
        return sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def positions(self) -> dict[str, tuple[int, int]]:
        """The positions that a file stores, of each bucket: name → (groups, n_in)."""
        return {b.positions: (len(b.members), b.shape.n_in) for b in self.buckets if self.config.places}

    @property
    def packed_positions(self) -> dict[str, tuple[int, int]]:
        """The same as they are stored: name → (groups, bytes)."""
        return {
            b.positions: (len(b.members), position_bytes(b.shape.n_in, b.shape.n_out))
            for b in self.buckets
            if self.config.places
        }

    @property
    def position_bytes(self) -> int:
        """Bytes of the stored positions."""
        return sum(math.prod(shape) for shape in self.packed_positions.values())

    @property
    def bytes(self) -> int:
        """Bytes of these numbers in a file, and of their scales and positions where it has some."""
        numbers = sum(number_bytes(shape, self.config.bits) for shape in self.tensors.values())
        return numbers + 4 * len(self.config.scales) + self.position_bytes


def number_bytes(shape: tuple[int, ...], bits: int | None) -> int:
    """Bytes of a tensor whose numbers have `bits` bits each, in float32 where that is None.

    >>> number_bytes((5, 3), 4), number_bytes((5, 3), None)
    (8, 60)
    """
    return -(-math.prod(shape) * (bits or 32) // 8)


def position_bits(k: int, n: int) -> tuple[int, int]:
    """Of `k` packed positions below `n`: the low bits of each, and the length of the upper row (`adapter.positions`).

    >>> position_bits(3, 10)
    (1, 8)
    """
    low = max(0, (n // k).bit_length() - 1)
    return low, k + ((n - 1) >> low) + 1


def position_bytes(k: int, n: int) -> int:
    """Bytes of `k` packed positions below `n`.

    >>> position_bytes(5899, 768 * 768)  # ratio 0.01: 8.6 bits each
    6314
    """
    low, upper = position_bits(k, n)
    return -(-(low * k + upper) // 8)
