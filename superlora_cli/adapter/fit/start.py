"""The start of a fit: scale, F and folding are inverted on the wanted ΔW, and each group is solved separately."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from superlora_cli.adapter.fit.units import fit_kronecker
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.initial import initial
from superlora_cli.adapter.shapes import Bucket, Plan

CONJUGATE_STEPS = 30


def start(plan: Plan, wanted: Sequence[Tensor], frozen: Frozen) -> dict[str, Tensor]:
    """Start values for every trained tensor: name → (groups, terms, ...), in the dtype of `wanted`.

    The padding elements of a folded group are taken as 0. Where there is no closed form (elementwise products, a
    nonlinear F, an F_in, frozen factors or diagonals), these are the initial values of training, where ΔW = 0.
    """
    vector = torch.cat([delta.flatten() for delta in wanted])
    values = {name: tensor.to(vector) for name, tensor in initial(plan).items()}
    config = plan.config
    if frozen.relative or config.combine == "hadamard" or config.inner or config.freeze or config.diagonals:
        return values
    for bucket in plan.buckets:
        rows = torch.stack([_piece(vector, plan.starts[group], bucket.shape.n_out) for group in bucket.members])
        folded = _unproject(bucket, rows / plan.config.scale, frozen)  # (groups, n_in)
        for row, x in enumerate(folded):
            terms = fit_kronecker(bucket.shape.units, _fold(bucket, x), bucket.shape.terms)
            for term, made in enumerate(terms):
                for unit, tensors in zip(bucket.units, made, strict=True):
                    for part, tensor in tensors.items():
                        values[unit.name(part)][row, term] = tensor
    return values


def _piece(vector: Tensor, first: int, size: int) -> Tensor:
    """`size` elements from `first` on, padded with zeros."""
    piece = vector[first : first + size]
    return torch.nn.functional.pad(piece, (0, size - len(piece)))


def _fold(bucket: Bucket, x: Tensor) -> Tensor:
    """(n_in,) as the tensor that the group's units form, with elements beyond n_in as 0."""
    extent = bucket.shape.extent
    return _piece(x, 0, math.prod(extent)).reshape(extent)


def _unproject(bucket: Bucket, y: Tensor, frozen: Frozen) -> Tensor:
    """The x whose F(x) is closest to y, (groups, n_out) → (groups, n_in): conjugate gradients on FᵀF x = Fᵀy (CGLS).

    Fᵀ is the backward pass of F, which is linear here; one step suffices if F is the identity or a shuffle.
    """
    shape = bucket.shape
    x = torch.zeros(len(y), shape.n_in, dtype=y.dtype, device=y.device)

    def adjoint(rows: Tensor) -> Tensor:
        with torch.enable_grad():
            at = torch.zeros_like(x).requires_grad_()
            (back,) = torch.autograd.grad(frozen.project(bucket, at), at, rows)
        return back

    residual = y
    gradient = adjoint(residual)
    direction, size = gradient, gradient.square().sum(-1, keepdim=True)
    first = size.clone()
    for _ in range(CONJUGATE_STEPS):
        if not (size > 1e-24 * first).any():
            break
        image = frozen.project(bucket, direction)
        step = size / image.square().sum(-1, keepdim=True).clamp_min(1e-300)
        x = x + step * direction
        residual = residual - step * image
        gradient = adjoint(residual)
        before, size = size, gradient.square().sum(-1, keepdim=True)
        direction = gradient + size / before.clamp_min(1e-300) * direction
    return x
