"""F(x) = DCT⁻¹(x), x at N_in random frequencies of the group as a matrix (LoCA, arXiv 2502.06820)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from superlora_cli.adapter.projections import Draw, Place, Project, Size

if TYPE_CHECKING:
    from torch import Tensor

SPECTRAL = True


def held(size: Size) -> int:
    """The spectrum."""
    return math.prod(size.matrix)


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Drawn from the role `frequencies`. Without `rescale` it is the orthonormal inverse of the DCT-II."""
    from superlora_cli.adapter.projections._spectral import spectral

    rows, columns = size.matrix

    def inverse(spectrum: Tensor) -> Tensor:
        made = _inverse(_inverse(spectrum).mT).mT
        return made * math.sqrt(rows * columns / size.n_in) if size.rescale else made

    return spectral(size, draw, place, inverse)


def _inverse(x: Tensor) -> Tensor:
    """Σ_u a_u x_u cos(π (2j + 1) u / 2L) along the last axis of length L, a_0 = √(1/L), a_u = √(2/L): a DFT of 2L."""
    import torch

    length = x.shape[-1]
    u = torch.arange(length, dtype=x.dtype, device=x.device)
    weight = torch.full_like(u, math.sqrt(2 / length))
    weight[0] = math.sqrt(1 / length)
    turned = x * torch.polar(weight, math.pi / (2 * length) * u)
    return torch.fft.ifft(turned, n=2 * length).real[..., :length] * (2 * length)
