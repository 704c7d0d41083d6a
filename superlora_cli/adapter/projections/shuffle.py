"""F(x) = x Π: the elements in a random order (section 3.2)."""

from __future__ import annotations

import numpy as np

from superlora_cli.adapter.projections import Draw, Place, Project, Size


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Element j of the output is element π(j) of the input."""
    order = place(draw("permutation").permutation(size.n_out).astype(np.int32))
    return lambda x: x.index_select(-1, order)
