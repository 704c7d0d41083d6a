"""F(x) = Re DFT⁻¹(x), x at N_in random frequencies of the group as a matrix (FourierFT, arXiv 2405.03003)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from superlora_cli.adapter.projections import Draw, Place, Project, Size
from superlora_cli.adapter.projections._spectral import spectral


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Drawn from the role `frequencies`. Plain it is torch's `ifft2`: Σ x cos(…) / (rows · columns)."""
    rows, columns = size.matrix

    def inverse(spectrum: Tensor) -> Tensor:
        made = torch.fft.ifft2(spectrum).real
        return made * (rows * columns * math.sqrt(2 / size.n_in)) if size.rescale else made

    return spectral(size, draw, place, inverse)
