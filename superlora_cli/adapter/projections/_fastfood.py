"""The fastfood projection F(x) = x H' diag(G) Π H diag(B) and its adjoint (Eq. 4), which four projections share.

Row vectors, so the factors apply from left to right: zero-pad x (N_in) to 2^N, transform, multiply by G, permute,
transform, keep the first N_out, multiply by B.

The transform of a zero-padded vector repeats the transform of the short one, so the first transform has
the smallest power of two ≥ N_in as its length, and the permutation gathers from it (index modulo its length). Only
one transform of full length remains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from superlora_cli.adapter.hadamard import transform
from superlora_cli.adapter.projections import Draw, Place, Project, Size


@dataclass(frozen=True)
class Fastfood:
    """The frozen tensors of one F.

    Attributes:
        source: int32 (2^N,): position in the short transform (length 2^S) of output j of Π.
        home: int32 (2^N,): the position to which Π moves i; the inverse of Π as a gather.
        gauss: (2^N,): G after Π, times the constants of the transforms and of `rescale`.
        last: (N_out,): B, or the Gaussian G' of the v2 variants.
    """

    n_in: int
    short: int  # 2^S
    source: Tensor
    home: Tensor
    gauss: Tensor
    last: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(g, N_in) → (g, N_out)."""
        short = transform(functional.pad(x, (0, self.short - self.n_in)))  # (g, 2^S)
        mixed = short.index_select(-1, self.source).mul_(self.gauss)  # (g, 2^N)
        return transform(mixed)[..., : len(self.last)] * self.last

    def adjoint(self, grad: Tensor) -> Tensor:
        """(g, N_out) → (g, N_in): the same steps in reverse, H being its own adjoint."""
        full = len(self.gauss)
        mixed = transform(functional.pad(grad * self.last, (0, full - len(self.last)))).mul_(self.gauss)
        spread = mixed.index_select(-1, self.home)  # (g, 2^N), undoes Π
        short = spread.view(*spread.shape[:-1], -1, self.short).sum(-2)  # (g, 2^S), undoes the repetition
        return transform(short)[..., : self.n_in]


class _Apply(torch.autograd.Function):
    """F without its activation or, with `adjoint`, its adjoint; each is the backward of the other."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, fastfood: Fastfood, adjoint: bool) -> Tensor:
        return fastfood.adjoint(x) if adjoint else fastfood.forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.fastfood, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Apply.apply(grads[0], ctx.fastfood, not ctx.adjoint), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _Apply.apply(tangents[0], ctx.fastfood, ctx.adjoint)


def draw_fastfood(size: Size, draw: Draw, place: Place, *, gaussian: bool) -> Fastfood:
    """Draw Π, G and B (Rademacher), or with `gaussian` G' instead of B."""
    full = 2**size.bits
    short = 2 ** (size.n_in - 1).bit_length()
    order = draw("permutation").permutation(full)  # element j of xΠ is element order[j] of x
    gauss = draw("gauss").standard_normal(full)[order]
    last = draw("last")
    ending = last.standard_normal(size.n_out) if gaussian else last.randint(0, 2, size.n_out) * 2.0 - 1.0
    constant = math.sqrt(short / full) * (math.sqrt(full / size.n_in) if size.rescale else 1.0)
    home = np.empty(full, np.int32)
    home[order] = np.arange(full, dtype=np.int32)
    source = (order & (short - 1)).astype(np.int32)
    return Fastfood(size.n_in, short, place(source), place(home), place(gauss * constant), place(ending))


def fastfood(size: Size, draw: Draw, place: Place, *, gaussian: bool, nonlinear: bool) -> Project:
    """One of the four projections based on fastfood."""
    frozen = draw_fastfood(size, draw, place, gaussian=gaussian)

    def project(x: Tensor) -> Tensor:
        y: Any = _Apply.apply(x, frozen, False)
        return functional.tanhshrink(y) if nonlinear else y

    return project
