"""F(x) = x."""

from __future__ import annotations

from superlora_cli.adapter.projections import Draw, Place, Project, Size

FULL_SIZE = True


def held(size: Size) -> int:
    """Nothing."""
    return 0


def build(size: Size, draw: Draw, place: Place) -> Project:
    """Nothing is drawn, nothing is done."""
    return lambda x: x
