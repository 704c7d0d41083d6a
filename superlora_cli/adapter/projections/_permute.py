"""A gather whose backward is a gather too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Permute(torch.autograd.Function):
    """Reorders elements; the backward is a gather by the inverse permutation, where autograd would scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor, home: Tensor) -> Tensor:
        return x.index_select(-1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.permutations = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        order, home = ctx.permutations
        return Permute.apply(grads[0], home, order), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return Permute.apply(tangents[0], *ctx.permutations)
