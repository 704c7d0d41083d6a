"""F(x) = x Π: the elements in a random order (section 3.2)."""

from __future__ import annotations

from superlora_cli.adapter.projections import Draw, Place, Project, Size

FULL_SIZE = True


def held(size: Size) -> int:
    """Π."""
    return size.n_out


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Element j of the output is element π(j) of the input."""
    import numpy as np

    from superlora_cli.adapter.projections._permute import Permute

    permutation = draw("permutation").permutation(size.n_out)
    order, home = place(permutation.astype(np.int32)), place(np.argsort(permutation).astype(np.int32))
    return lambda x: Permute.apply(x, order, home)
