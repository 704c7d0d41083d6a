"""F(x) = x Π: the elements in a random order (section 3.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from superlora_cli.adapter.projections import Draw, Place, Project, Size


class _Permute(torch.autograd.Function):
    """A gather whose backward is a gather too, by the inverse permutation; autograd's own would scatter."""

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
        return _Permute.apply(grads[0], home, order), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _Permute.apply(tangents[0], *ctx.permutations)


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Element j of the output is element π(j) of the input."""
    permutation = draw("permutation").permutation(size.n_out)
    order, home = place(permutation.astype(np.int32)), place(np.argsort(permutation).astype(np.int32))
    return lambda x: _Permute.apply(x, order, home)
