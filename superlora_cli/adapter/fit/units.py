"""Best factors of one unit, or of a Kronecker product of units, for a tensor, in closed form."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.shapes import UnitShape
from superlora_cli.errors import UsageError

Tensors = dict[str, Tensor]


def fit_unit(unit: UnitShape, wanted: Tensor) -> Tensors:
    """`core` and `A1` ... `AM` of one unit for a tensor (d_1, ..., d_M).

    A dense unit is the tensor itself. A dense core uses Tucker by HOOI (De Lathauwer et al., 2000); a superdiagonal one
    uses the SVD for M = 2, else CP by alternating least squares. All except the SVD come from tensorly.

    Raises:
        UsageError: the core has no closed form, or tensorly is not installed.
    """
    if unit.is_dense:
        return {"core": wanted.clone()}
    if not wanted.any():
        return _nothing(unit, wanted)
    core = CORES[unit.core]
    if core.closed_form is None:
        raise UsageError(f"core '{unit.core}' has no known decomposition", where="adapter.core", hint="dense")
    if core.closed_form == "tucker":
        return _tucker(unit, wanted)
    if len(unit.sides) == 2:
        u, s, vh = torch.linalg.svd(wanted, full_matrices=False)
        rank = unit.ranks[0]
        weights, planes = s[:rank], [u[:, :rank], vh[:rank].mT]
    else:
        tensorly = _tensorly()
        with tensorly.backend_context("pytorch", local_threadsafe=True):
            weights, planes = tensorly.decomposition.parafac(wanted, rank=unit.ranks[0], n_iter_max=100, random_state=0)
    if core.stored:
        return {"core": weights} | {f"A{m}": plane for m, plane in enumerate(planes, 1)}
    share = weights.abs() ** (1 / len(planes))
    planes = [plane * share for plane in planes]
    planes[0] = planes[0] * weights.sign()
    return {f"A{m}": plane for m, plane in enumerate(planes, 1)}


def _tensorly() -> Any:
    try:
        import tensorly.decomposition
    except ImportError:
        hint = "pip install 'superlora-cli[extract]'"
        raise UsageError("tensorly, which computes the factors, is not installed", where="extract", hint=hint) from None
    return tensorly


def _tucker(unit: UnitShape, wanted: Tensor) -> Tensors:
    tensorly, modes = _tensorly(), [m for m, rank in enumerate(unit.ranks) if rank]
    with tensorly.backend_context("pytorch", local_threadsafe=True), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Trying to compute SVD"
        )  # for a mode whose rank exceeds the product of the others
        ranks = [unit.ranks[m] for m in modes]
        (core, planes), _ = tensorly.decomposition.partial_tucker(wanted, rank=ranks, modes=modes, random_state=0)
    return {"core": core} | {f"A{m + 1}": plane for m, plane in zip(modes, planes, strict=True)}


def _nothing(unit: UnitShape, like: Tensor) -> Tensors:
    """Factors of the zero tensor with nonzero gradients: only the first one is zero."""
    tensors = {name: torch.ones(shape, dtype=like.dtype, device=like.device) for name, shape in unit.tensors.items()}
    first = next(name for name in unit.tensors if name != "core")
    return tensors | {first: torch.zeros_like(tensors[first])}


def fit_kronecker(units: Sequence[UnitShape], wanted: Tensor, terms: int) -> list[list[Tensors]]:
    """Σ over terms of products of K units, left first, for a tensor of any sides that the product covers.

    The nearest Kronecker product is the SVD of the rearranged tensor, blocks as rows (Van Loan and Pitsianis, 1993);
    for K > 2 its right factor is split in the same way; low-rank units then approximate their factor.

    Returns:
        [term][k] → tensors of unit k.
    """
    if len(units) == 1:
        return [[fit_unit(units[0], wanted)]]
    left = units[0]
    rest = tuple(math.prod(own) for own in zip(*(unit.sides for unit in units[1:]), strict=True))
    rows = rearrange(wanted, left.sides, rest)  # (∏ f_m, ∏ d_m)
    u, s, vh = torch.linalg.svd(rows, full_matrices=False)
    made = []
    for term in range(terms):
        inside = term < len(s)
        root = s[term].sqrt() if inside else s.new_zeros(())
        a = u[:, term] * root if inside else torch.zeros_like(rows[:, 0])
        b = vh[term] * root if inside else torch.zeros_like(rows[0])
        ((*right,),) = fit_kronecker(units[1:], b.reshape(rest), 1)
        made.append([fit_unit(left, a.reshape(left.sides)), *right])
    return made


def rearrange(tensor: Tensor, lefts: Sequence[int], rights: Sequence[int]) -> Tensor:
    """A tensor, padded with zeros to sides f_m·d_m, as (∏ f_m, ∏ d_m): a Kronecker product becomes an outer product.

    >>> left, right = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    >>> rearrange(torch.kron(left, right), left.shape, right.shape)
    tensor([[3., 4.],
            [6., 8.]])
    """
    order = len(lefts)
    padding = [f * d - side for f, d, side in zip(lefts, rights, tensor.shape, strict=True)]
    whole = functional.pad(tensor, [amount for extra in reversed(padding) for amount in (0, extra)])
    split = whole.reshape([part for pair in zip(lefts, rights, strict=True) for part in pair])
    return split.permute(*range(0, 2 * order, 2), *range(1, 2 * order, 2)).reshape(math.prod(lefts), -1)
