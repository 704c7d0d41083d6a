"""Common part of the spectral projections: numbers are placed at random frequencies and transformed back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from superlora_cli.adapter.projections import Draw, Place, Project, Size


def spectral(size: Size, draw: Draw, place: Place, inverse: Callable[[Tensor], Tensor]) -> Project:
    """The projection that applies `inverse`, (groups, rows, columns) → the same, and keeps N_out elements."""
    rows, columns = size.matrix
    chosen = draw("frequencies").permutation(rows * columns)[: size.n_in]
    frequencies = place(chosen.astype(np.int64))

    def project(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # transforms do not support half precision
        spectrum = wide.new_zeros(len(x), rows * columns).index_copy(-1, frequencies, wide)
        made = inverse(spectrum.view(len(x), rows, columns))
        return made.flatten(1)[:, : size.n_out].to(x.dtype)

    return project
