"""A linear layer of which some rows are trained: no gradient, and no ΔW, for the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Starts = tuple[tuple[int, ...], tuple[int, ...]]


class RowsLinear(torch.autograd.Function):
    """y = x Wᵀ + b for a frozen W (out, in), with updates of some of its rows.

    Args of `apply`:
        input: (..., in).
        weight: (out, in), which holds the dense updates already.
        bias: (out,) or None.
        starts: first rows of the dense updates, and of the low-rank ones.
        parts: the dense updates (rows, in), the left factors (rows, r), the right factors (r, in).
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, starts: Starts, *parts: Tensor) -> Tensor:
        dense, low = len(starts[0]), len(starts[1])
        lefts, rights = parts[dense : dense + low], parts[dense + low :]
        flat = input.flatten(0, -2)  # (n, in)
        output = functional.linear(flat, weight, bias)
        inner = flat @ torch.cat(rights).mT if low else None  # (n, Σr): all right factors in one product
        if inner is not None:
            for start, left, own in zip(starts[1], lefts, inner.split([len(r) for r in rights], 1), strict=True):
                output[:, start : start + len(left)].addmm_(own, left.mT)
        ctx.save_for_backward(flat, weight, inner, *lefts, *rights)
        ctx.starts, ctx.sizes, ctx.shape = starts, [len(part) for part in parts[:dense]], input.shape
        return output.view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        flat, weight, inner, *factors = ctx.saved_tensors
        (dense_starts, low_starts), grad = ctx.starts, grads[0].flatten(0, -2)  # (n, out)
        lefts, rights = factors[: len(low_starts)], factors[len(low_starts) :]
        for_input = grad @ weight if ctx.needs_input_grad[0] else None
        for_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        for_dense = [grad[:, s : s + n].mT @ flat for s, n in zip(dense_starts, ctx.sizes, strict=True)]
        for_left, for_right = [], []
        if rights:
            ranks = [len(right) for right in rights]
            rows = [grad[:, s : s + len(left)] for s, left in zip(low_starts, lefts, strict=True)]
            through = torch.cat([own @ left for own, left in zip(rows, lefts, strict=True)], 1)  # (n, Σr)
            for_left = [own.mT @ u for own, u in zip(rows, inner.split(ranks, 1), strict=True)]
            for_right = list((through.mT @ flat).split(ranks))
            if for_input is not None:
                for_input.addmm_(through, torch.cat(rights))
        if for_input is not None:
            for_input = for_input.view(ctx.shape)
        return for_input, None, for_bias, None, *for_dense, *for_left, *for_right
