"""The best low-rank approximation of an update, by rank or by energy, and its error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from superlora_cli.adapter.updates import Linear, LowRank
from superlora_cli.errors import RunError, UsageError

ENERGY = 0.99  # share of the squared Frobenius norm to keep by default


@dataclass(frozen=True)
class Approximation:
    """An update as left @ right, (rows, r) @ (r, columns).

    Attributes:
        norm: ‖ΔW‖, the Frobenius norm of the update.
        error: ‖ΔW − left · right‖ / ‖ΔW‖; 0 if the factors are the update's own, or if ΔW = 0.
    """

    update: LowRank
    norm: float
    error: float

    @property
    def rank(self) -> int:
        """r."""
        return self.update.right.shape[0]


def check_limits(rank: int | None, energy: float | None) -> None:
    """Refuse an invalid rank or energy.

    Raises:
        UsageError: names the option.
    """
    if rank is not None and rank < 1:
        raise UsageError(f"rank is {rank}", where="--rank", hint="a whole number ≥ 1")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"energy is {energy}", where="--energy", hint="a share of the squared norm, in (0, 1]")


def approximate(update: Linear, *, rank: int | None = None, energy: float | None = None) -> Approximation:
    """A low-rank form of an update: its own factors if they satisfy the limits, else the best approximation.

    Args:
        update: in any form.
        rank: at most this; energy: keep at least this share of ‖ΔW‖². By default energy is `ENERGY`.

    Raises:
        RunError: ΔW is not finite.
    """
    if isinstance(update, LowRank) and energy is None and (rank is None or update.right.shape[0] <= rank):
        gram = (update.left.mT.double() @ update.left.double()) * (update.right.double() @ update.right.mT.double())
        if not torch.isfinite(gram).all():
            raise RunError("the update is not finite", hint="train again at a lower rate")
        return Approximation(update, math.sqrt(max(gram.sum().item(), 0.0)), 0.0)
    return nearest(update.dense().flatten(1), rank=rank, energy=ENERGY if rank is None and energy is None else energy)


def nearest(delta: Tensor, *, rank: int | None = None, energy: float | None = None) -> Approximation:
    """The best approximation of `delta` of a rank (Eckart–Young): the root of each singular value goes to each factor.

    Args:
        delta: (rows, columns).
        rank: at most this.
        energy: use the smallest rank that keeps this share of ‖delta‖². By default, the numerical rank.

    Raises:
        RunError: `delta` is not finite.

    >>> found = nearest(torch.diag(torch.tensor([3.0, 1.0])), energy=0.9)
    >>> found.rank, round(found.error, 3)
    (1, 0.316)
    """
    delta = delta.detach().to(torch.promote_types(delta.dtype, torch.float32))
    if not torch.isfinite(delta).all():
        raise RunError("the update is not finite", hint="train again at a lower rate")
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)  # (rows, k), (k,), (k, columns)
    kept = int((s > s[0] * max(delta.shape) * torch.finfo(s.dtype).eps).sum())  # the numerical rank
    if energy is not None:
        part = s.double().square().cumsum(0)
        kept = min(kept, int((part < energy * part[-1]).sum()) + 1)
    kept = max(1, kept if rank is None else min(kept, rank))
    root = s[:kept].sqrt()
    update = LowRank(u[:, :kept] * root, root[:, None] * vh[:kept])
    norm = torch.linalg.vector_norm(delta, dtype=torch.float64).item()
    missed = torch.linalg.vector_norm(delta - update.dense(), dtype=torch.float64).item()
    return Approximation(update, norm, missed / norm if norm else 0.0)


@torch.no_grad()
def errors_of(made: Iterable[Tensor], wanted: Iterable[Tensor]) -> list[tuple[float, float]]:
    """(norm of the wanted ΔW, relative error) of every ΔW made; the absolute error where that norm is 0."""
    found = []
    for one, goal in zip(made, wanted, strict=True):
        norm, off = float(goal.norm()), float((one - goal).norm())
        found.append((norm, off / norm if norm else off))
    return found


def whole_error(parts: Iterable[tuple[float, float]]) -> float:
    """Relative error over many weights, from the (norm, relative error) of each: √(Σ e²n² / Σ n²)."""
    pairs = [(norm * norm, error * error) for norm, error in parts]
    total = sum(square for square, _ in pairs)
    return math.sqrt(sum(square * error for square, error in pairs) / total) if total else 0.0
