"""How similar the updates ΔW (out, in) of two adapters are, weight by weight: appendix A.4, Eq. 5 to 7.

    d_L = ‖U₁[:, :k]ᵀ U₂[:, :k]‖ / √k      left singular vectors: where the update writes to (Eq. 5)
    d_R = ‖V₁[:, :k]ᵀ V₂[:, :k]‖ / √k      right singular vectors: what it reads from (Eq. 6)
    d_E = ‖ΔW₁ − ΔW₂‖ / ‖ΔW₁‖              (Eq. 7)

All norms are Frobenius norms: only then are d_L and d_R of equal subspaces 1 for every k, as the paper says. They are
in [0, 1] and depend on the subspaces alone; for two random ones of dimension k in n dimensions the mean of d² is k/n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

PRINCIPAL = 5  # singular vectors that the paper compares


class Similarity(NamedTuple):
    """The three measures of a weight.

    Attributes:
        left, right: d_L and d_R; None where one of the updates is zero.
        distance: d_E; None where the first update is zero.
        vectors: k, the number of singular vectors compared: at most the rank of either update.
    """

    left: float | None
    right: float | None
    distance: float | None
    vectors: int


@dataclass(frozen=True)
class Spectrum:
    """An update and its principal singular vectors.

    Attributes:
        delta: (out, in) float64.
        left, right: (out, k) and (in, k), orthonormal, by decreasing singular value.
    """

    delta: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, delta: Tensor, k: int = PRINCIPAL) -> Spectrum:
        """The spectrum of ΔW, whose first axis is `out` and whose others are flattened to `in`.

        An update of rank below k has only as many singular vectors as its rank: those whose singular values are zero to
        the precision of ΔW are arbitrary and mean nothing.
        """
        import torch  # here: a report without geometry does not wait for it

        matrix = delta.detach().flatten(1).to("cpu", torch.float64)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        precision = torch.finfo(delta.dtype).eps * max(matrix.shape)
        kept = min(k, int((s > s[0] * precision).sum()))
        return cls(matrix, u[:, :kept], vh[:kept].T)


def compare(reference: Spectrum, other: Spectrum) -> Similarity:
    """d_L, d_R and d_E of `other` with respect to `reference`; d_L and d_R are the same the other way round."""
    k = min(reference.left.shape[1], other.left.shape[1])
    left, right = (
        _overlap(one[:, :k], two[:, :k]) for one, two in ((reference.left, other.left), (reference.right, other.right))
    )
    size = reference.delta.norm().item()
    distance = (reference.delta - other.delta).norm().item() / size if size else None
    return Similarity(left, right, distance, k)


def at_random(n: int, k: int = PRINCIPAL) -> float:
    """√(k/n): the expected d_L (n = out) or d_R (n = in) of unrelated subspaces.

    >>> at_random(500)
    0.1
    """
    return math.sqrt(k / n)


def _overlap(one: Tensor, other: Tensor) -> float | None:
    """‖oneᵀ other‖ / √k for orthonormal (n, k), at most 1."""
    k = one.shape[1]
    return min(1.0, (one.T @ other).norm().item() / math.sqrt(k)) if k else None
