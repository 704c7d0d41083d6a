"""A linear layer in which only some rows are trained: no gradient and no ΔW for the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Starts = tuple[tuple[int, ...], tuple[int, ...]]


def as_rows(input: Tensor) -> Tensor:
    """(..., in) → (n, in), also for n = 0 or a single axis."""
    return input.reshape(math.prod(input.shape[:-1]), input.shape[-1])


def splice(weight: Tensor, updates: Sequence[tuple[int, Tensor]], *, dtype: torch.dtype | None = None) -> Tensor:
    """`weight` with every update added to its rows, in at least float32 and cast once; other rows bit for bit.

    weight (out, ...), updates [(first row, (rows, ...))] in row order; `dtype` of the result: by default the weight's.
    """
    dtype = dtype or weight.dtype
    pieces, at = [], 0
    for start, delta in updates:
        rows = weight[start : start + len(delta)]
        pieces += [weight[at:start].to(dtype), (rows + delta).to(dtype)]
        at = start + len(delta)
    pieces = [piece for piece in (*pieces, weight[at:].to(dtype)) if len(piece)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """All in one; a single one, the usual case, is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _parted(whole: Tensor, like: Sequence[Tensor], dim: int) -> Sequence[Tensor]:
    """The inverse of `_joined`: parts as long as the tensors `like`."""
    return (whole,) if len(like) == 1 else whole.split([part.shape[0] for part in like], dim)


def _columns(whole: Tensor, start: int, update: Tensor) -> Tensor:
    """The columns (n, rows) that belong to the rows of an update."""
    rows = update.shape[0]
    return whole if rows == whole.shape[1] else whole[:, start : start + rows]


class RowsLinear(torch.autograd.Function):
    """y = x Wᵀ + b for a frozen W (out, in) with updates to some rows.

    Args of `apply`:
        input: (..., in).
        weight: (out, in), with the dense updates already added.
        bias: (out,) or None.
        starts: first rows of the dense updates, and of the low-rank ones.
        parts: the dense updates (rows, in), the left factors (rows, r), the right factors (r, in).
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, starts: Starts, *parts: Tensor) -> Tensor:
        dense, low = len(starts[0]), len(starts[1])
        lefts, rights = parts[dense : dense + low], parts[dense + low :]
        flat = as_rows(input)  # (n, in)
        output = functional.linear(flat, weight, bias)
        inner = flat @ _joined(rights).mT if low else None  # (n, Σr): all right factors in one product
        if inner is not None:
            for start, left, own in zip(starts[1], lefts, _parted(inner, rights, 1), strict=True):
                _columns(output, start, left).addmm_(own, left.mT)
        trains = any(ctx.needs_input_grad[4:])  # else the input is not needed
        ctx.save_for_backward(input if trains else None, weight, bias, inner if trains else None, *parts)
        ctx.starts, ctx.shape = starts, input.shape
        return output.view(*input.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        input, weight, bias, inner, *parts = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            needed = [needs for index, needs in enumerate(ctx.needs_input_grad) if index not in (1, 3)]
            own = grads[0].new_zeros(ctx.shape).requires_grad_() if input is None else input
            for_input, for_bias, *others = _with_a_graph(own, weight, bias, ctx.starts, parts, needed, grads[0])
            return for_input, None, for_bias, None, *others
        (dense_starts, low_starts), grad = ctx.starts, as_rows(grads[0])  # (n, out)
        flat = None if input is None else as_rows(input)  # (n, in)
        dense, low = len(dense_starts), len(low_starts)
        lefts, rights = parts[dense : dense + low], parts[dense + low :]
        for_input = grad @ weight if ctx.needs_input_grad[0] else None
        for_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        for_parts: list[Tensor | None] = [None] * len(parts)
        if flat is not None:
            for_parts[:dense] = [
                _columns(grad, s, p).mT @ flat for s, p in zip(dense_starts, parts[:dense], strict=True)
            ]
        if rights:
            rows = [_columns(grad, s, left) for s, left in zip(low_starts, lefts, strict=True)]
            through = _joined([own @ left for own, left in zip(rows, lefts, strict=True)], 1)  # (n, Σr)
            if flat is not None:
                for_left = [own.mT @ u for own, u in zip(rows, _parted(inner, rights, 1), strict=True)]
                for_parts[dense:] = [*for_left, *_parted(through.mT @ flat, rights, 0)]
            if for_input is not None:
                for_input.addmm_(through, _joined(rights))
        if for_input is not None:
            for_input = for_input.view(ctx.shape)
        return for_input, None, for_bias, None, *for_parts


def _with_a_graph(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Starts,
    parts: list[Tensor],
    needed: list[bool],
    grad: Tensor,
) -> list[Tensor | None]:
    """Differentiable gradients of input, bias and parts, by torch's own operators."""
    input, bias = input.view_as(input), None if bias is None else bias.view_as(bias)  # this layer's own
    parts = [part.view_as(part) for part in parts]
    dense, low = len(starts[0]), len(starts[1])
    changes = [(start, part - part.detach()) for start, part in zip(starts[0], parts, strict=False)]  # 0 in value
    products = zip(starts[1], parts[dense : dense + low], parts[dense + low :], strict=True)
    changes += [(start, left @ right) for start, left, right in products]
    output = functional.linear(input, splice(weight, sorted(changes, key=lambda change: change[0])), bias)
    wanted = [own for own, needs in zip((input, bias, *parts), needed, strict=True) if needs and own is not None]
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return [next(found) if needs else None for needs in needed]
