"""Pictures as files: the suffix sets the format, and the same numbers give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from superlora_cli.errors import UsageError
from superlora_cli.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Number = TypeVar("Number", int, float)


def columns(points: Iterable[tuple[int, Number]]) -> tuple[list[int], list[Number]]:
    """All x and all y of some points (x, y)."""
    pairs = list(points)
    return [x for x, _ in pairs], [y for _, y in pairs]


def picture_kind(path: Path) -> str:
    """The format of a picture file, by its suffix.

    Raises:
        UsageError: a suffix other than .svg, .pdf and .png, or no such folder.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("svg", "pdf", "png"):
        raise UsageError(f"cannot draw a '{path.suffix}' file", where=str(path), hint="a name that ends in .svg")
    if not path.parent.is_dir():
        raise UsageError("no such folder", where=str(path.parent), hint="create it first")
    return kind


def save_picture(figure: Figure, path: Path) -> None:
    """Write the figure.

    Raises:
        UsageError: as `picture_kind`, or the file cannot be written.
    """
    import matplotlib as mpl

    kind, buffer = picture_kind(path), io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "superlora"}):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_atomic(path, buffer.getvalue(), force=True)
