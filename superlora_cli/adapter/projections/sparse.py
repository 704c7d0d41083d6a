"""F(x) has the numbers x at N_in random elements, and zeros elsewhere (SHiRA, arXiv 2406.13175)."""

from __future__ import annotations

import numpy as np

from superlora_cli.adapter.projections import Draw, Place, Project, Size


def held(size: Size) -> int:
    """The positions."""
    return size.n_in


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Drawn from the role `positions`."""
    from superlora_cli.adapter.projections._placed import placed

    positions = place(draw("positions").permutation(size.n_out)[: size.n_in].astype(np.int64))
    return lambda x: placed(x, positions, size)
