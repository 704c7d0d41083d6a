"""ΔW as a product with the base's own weight W: the knob `multiply`.

The units of the equation then make other numbers X than ΔW, with a shape of their own for every target; N counts these.
Each kind is an object in `MULTIPLY`, under its name in recipes; no other code refers to one by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from superlora_cli.adapter.targets import TargetShape
from superlora_cli.table import Table

if TYPE_CHECKING:
    from torch import Tensor


class Multiply:
    """The interface of a kind, and the plain one: ΔW = X, and W is not needed.

    Attributes:
        scales_inputs: whether W + ΔW is W with its inputs scaled.
    """

    takes_weight = scales_inputs = False

    def shape(self, rows: int, columns: int, block: int) -> tuple[int, int]:
        """The shape of X for a weight (rows, columns)."""
        return rows, columns

    def size(self, block: int) -> float:
        """The root mean square of ΔW divided by that of W, to first order, for X of unit scale."""
        return 1.0

    def delta(self, x: Tensor, weight: Tensor) -> Tensor:
        """ΔW (rows, columns) from X and W (rows, columns); zero if X is."""
        return x


class Elementwise(Multiply):
    """ΔW = W ⊙ X (HiRA)."""

    takes_weight = True

    def delta(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * weight


class Rows(Multiply):
    """ΔW = diag(x) W (IA³ on outputs)."""

    takes_weight = True

    def shape(self, rows: int, columns: int, block: int) -> tuple[int, int]:
        return 1, rows

    def delta(self, x: Tensor, weight: Tensor) -> Tensor:
        return x.mT * weight


class Columns(Multiply):
    """ΔW = W diag(x) (IA³ on inputs)."""

    takes_weight = scales_inputs = True

    def shape(self, rows: int, columns: int, block: int) -> tuple[int, int]:
        return 1, columns

    def delta(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * weight


class Rotation(Multiply):
    """ΔW = W (Q − 1), Q = (1 + S)(1 − S)⁻¹ for S = X − Xᵀ: orthogonal, in blocks along the diagonal (OFT).

    The last block is cropped where `block` does not divide the columns.
    """

    takes_weight = True

    def shape(self, rows: int, columns: int, block: int) -> tuple[int, int]:
        return -(-columns // block) * block, block

    def size(self, block: int) -> float:
        return math.sqrt(8 * block)  # Q − 1 is about 2 (X − Xᵀ), and adds up `block` products

    def delta(self, x: Tensor, weight: Tensor) -> Tensor:
        import torch

        (height, block), columns = x.shape, weight.shape[1]
        square = x.unflatten(0, (-1, block))  # (blocks, block, block)
        inside = (torch.arange(height, device=x.device) < columns).view(-1, block, 1).to(x.dtype)
        skew = (square - square.mT) * inside * inside.mT
        turned = torch.linalg.solve(torch.eye(block, dtype=x.dtype, device=x.device) - skew, 2 * skew)  # Q − 1
        padded = torch.nn.functional.pad(weight, (0, height - columns)).unflatten(1, (-1, block))
        return torch.einsum("rbi,bij->rbj", padded, turned).flatten(1)[:, :columns]


class Magnitude(Multiply):
    """W + ΔW = (1 + x) ‖W‖ V / ‖V‖, V = W + ‖W‖ X / √columns: x is one more column, norms are row by row (DoRA)."""

    takes_weight = True

    def shape(self, rows: int, columns: int, block: int) -> tuple[int, int]:
        return rows, columns + 1

    def delta(self, x: Tensor, weight: Tensor) -> Tensor:
        import torch

        direction, growth = x[:, :-1], x[:, -1:]
        norm = weight.norm(dim=1, keepdim=True)
        moved = weight + norm / math.sqrt(weight.shape[1]) * direction
        least = torch.finfo(x.dtype).tiny  # rows of zeros stay zero
        kept = norm.clamp_min(least) / moved.norm(dim=1, keepdim=True).clamp_min(least)
        return (1 + growth) * kept * moved - weight


MULTIPLY: Table[Multiply] = Table(
    "kind of product",
    {
        "none": Multiply(),
        "elementwise": Elementwise(),
        "rows": Rows(),
        "columns": Columns(),
        "rotation": Rotation(),
        "magnitude": Magnitude(),
    },
)


def made(kind: str, block: int, targets: Sequence[TargetShape]) -> tuple[TargetShape, ...]:
    """The targets with the shapes of X in place of their own.

    >>> [(x.rows, x.columns) for x in made("rotation", 32, [TargetShape("fc", 3072, 768)])]
    [(768, 32)]
    """
    shapes = [MULTIPLY[kind].shape(target.rows, target.columns, block) for target in targets]
    return tuple(
        replace(target, rows=rows, columns=columns) for target, (rows, columns) in zip(targets, shapes, strict=True)
    )
