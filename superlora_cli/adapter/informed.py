"""`init: gradient`: trained factors start from the first gradients of the weights, and ΔW = 0 all the same.

Each group's gradient is folded like ΔW. The plane A_m starts as the leading singular vectors of its unfolding along
mode m, and a dense core as the gradient in their coordinates: the higher-order SVD, for a matrix the SVD (LoRA-GA,
LoRA-One). The factor that starts at zero still does, so the first step moves it to where it lowers the loss most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from superlora_cli.adapter.initial import start_scale
from superlora_cli.adapter.layers import stored_parameter
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.svd import folded, singular
from superlora_cli.errors import RunError


@contextmanager
def informed(model: nn.Module, adapter: SuperLora) -> Iterator[list[nn.Parameter]]:
    """Collect the gradients of the backward passes inside, and start the active `adapter` of `model` from them.

    Yields the adapted weights of the base, whose `grad` holds the sum so far. No gradient remains afterwards.

    Raises:
        RunError: there is no gradient, or it is not finite.
    """
    names = dict.fromkeys(f"{target.module}.weight" for target in adapter.targets)
    weights = {name: stored_parameter(model, name) for name in names}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield list(weights.values())
        found = [_rows(weights[f"{t.module}.weight"], t.start, t.stop, t.name) for t in adapter.targets]
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = None
    values = from_gradients(adapter, found)
    with torch.no_grad():
        for name, value in values.items():
            adapter.factors[name].copy_(value)


def _rows(weight: nn.Parameter, start: int, stop: int, name: str) -> Tensor:
    if weight.grad is None:
        raise RunError("got no gradient", where=name, hint="run a backward pass inside the with block")
    rows = weight.grad[start:stop]
    if not torch.isfinite(rows).all():
        raise RunError("the first gradient is not finite", where=name, hint="init: unit")
    return rows.flatten(1).float()


def from_gradients(adapter: SuperLora, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """The trained planes and dense cores, except those that start at zero, at their usual scale; name → float32.

    Groups without a gradient keep their start.

    Args:
        gradients: of ΔW of every target, (rows, columns).
    """
    shapes, found = adapter.plan, {name: factor.detach().cpu().clone() for name, factor in adapter.factors.items()}
    for bucket, group, tensor in folded(shapes, _of_made(adapter, gradients)):
        if not tensor.any():
            continue
        (own,), row = bucket.units, bucket.members.index(group)
        values, core = {}, tensor
        for m, (side, rank) in enumerate(zip(own.shape.sides, own.shape.ranks, strict=True), 1):
            if rank:
                vectors = singular(tensor.movedim(m - 1, 0).reshape(side, -1), rank, scaled=False)  # (d, r)
                values[f"A{m}"] = vectors * math.sqrt(side)
                core = torch.tensordot(core, vectors, dims=([0], [0]))  # the next axis leads, r is appended
            else:
                core = core.movedim(0, -1)
        if core.shape == own.shape.core_shape:
            values["core"] = core * (start_scale(own.shape, "core") / core.square().mean().sqrt())
        for part, value in values.items():
            if part in own.shape.trained and own.name(part) != bucket.zeroed:
                found[own.name(part)][row, 0] = value
    return found


def _of_made(adapter: SuperLora, gradients: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of what the units make, from those of ΔW."""
    frozen = adapter.not_trained()
    if not frozen.product.takes_weight:
        return list(gradients)
    made: list[Tensor] = []
    for shape, gradient, weight in zip(adapter.plan.made, gradients, frozen.weights, strict=True):
        x = gradient.new_zeros(shape.rows, shape.columns).requires_grad_()
        made += torch.autograd.grad(frozen.product.delta(x, weight.to(gradient)), x, gradient)
    return made
