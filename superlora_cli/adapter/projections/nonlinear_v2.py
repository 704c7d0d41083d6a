"""F(x) = tanhshrink[x H' diag(G) Π H diag(G')] (A.6)."""

from __future__ import annotations

from superlora_cli.adapter.projections import Draw, Place, Project, Size

NONLINEAR = True


def held(size: Size) -> int:
    """G."""
    return 2**size.bits


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Drawn from the roles `permutation`, `gauss` and `last`."""
    from superlora_cli.adapter.projections._fastfood import fastfood

    return fastfood(size, draw, place, gaussian=True, nonlinear=True)
