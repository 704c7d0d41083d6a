"""F(x) = x P, P an N_in × N_out matrix of normal entries, held in memory (NOLA, TinyLoRA)."""

from __future__ import annotations

import math

from superlora_cli.adapter.projections import Draw, Place, Project, Size


def held(size: Size) -> int:
    """P."""
    return size.n_in * size.n_out


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Drawn from the role `matrix`."""
    normal = draw("matrix").standard_normal((size.n_in, size.n_out))
    matrix = place(normal / math.sqrt(size.n_in) if size.rescale else normal)
    return lambda x: x @ matrix
