"""F(x) = Re DFT⁻¹(x), x at N_in random frequencies of the group as a matrix (FourierFT, arXiv 2405.03003)."""

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
    """Drawn from the role `frequencies`. Without `rescale` it is torch's `ifft2`: Σ x cos(…) / (rows · columns)."""
    from superlora_cli.adapter.projections._spectral import spectral

    rows, columns = size.matrix

    def inverse(spectrum: Tensor) -> Tensor:
        import torch

        made = torch.fft.ifft2(spectrum).real
        return made * (rows * columns * math.sqrt(2 / size.n_in)) if size.rescale else made

    return spectral(size, draw, place, inverse)
