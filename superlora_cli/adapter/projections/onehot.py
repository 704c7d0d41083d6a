"""F(x) = x P, every output element one of the N_in inputs, each used equally often (Uni-LoRA, arXiv 2506.00799)."""

from __future__ import annotations

import math

from superlora_cli.adapter.projections import Draw, Place, Project, Size


def held(size: Size) -> int:
    """An index and a scale for every output element."""
    return size.n_out


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Drawn from the role `permutation`. An input that is used u times is scaled by 1/√u, so that P Pᵀ = 1."""
    import numpy as np

    index = draw("permutation").permutation(size.n_out) % size.n_in
    uses = (size.n_out - 1 - np.arange(size.n_in)) // size.n_in + 1  # of every input: ⌊N_out / N_in⌋ or one more
    scale = np.maximum(uses, 1.0)[index] ** -0.5 * (math.sqrt(size.n_out / size.n_in) if size.rescale else 1.0)
    chosen, scales = place(index.astype(np.int32)), place(scale)
    return lambda x: x.index_select(-1, chosen) * scales
