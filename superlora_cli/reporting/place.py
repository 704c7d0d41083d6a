"""Where a report is written, and which of its files may be replaced.

PAGE.html                 the report; its first lines mark it as one and name its pictures
PAGE-figures/*.svg
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from superlora_cli.errors import UsageError
from superlora_cli.files import system_errors, write_atomic

MARK = b"<!-- superlora report -->"
FIGURES = re.compile(r'<meta name="superlora-figures" content="([^"]*)">')
FIGURE = re.compile(r"[\w.-]+\.svg")  # the only names of pictures


def check(out: Path, *, force: bool) -> None:
    """Refuse a place that a report must not overwrite; writes nothing.

    Raises:
        UsageError: no such folder, a page that is not a report, or other files where the pictures would go.
    """
    figures = _figures(out)
    with system_errors(out):
        if out.suffix not in (".html", ".htm"):
            raise UsageError(f"cannot write a '{out.suffix}' report", where=str(out), hint="a name that ends in .html")
        if not out.parent.is_dir():
            raise UsageError("no such folder", where=str(out.parent), hint="create it first")
        if out.is_dir() or (figures.exists() and not figures.is_dir()):
            kind = "is a folder" if out.is_dir() else "is not a folder"
            raise UsageError(kind, where=str(out if out.is_dir() else figures), hint="choose another --out")
        ours = out.exists() and _is_report(out)
        if out.exists() and not ours and not force:
            raise UsageError("the file exists and is not a report", where=str(out), hint="--force overwrites it")
        if figures.exists() and any(figures.iterdir()) and not ours and not force:
            raise UsageError("the folder is not empty", where=str(figures), hint="--force writes there anyway")


def write(out: Path, page: str, pictures: Mapping[str, str], *, force: bool) -> list[Path]:
    """Write page and pictures, and remove pictures of the previous report that this one no longer has.

    Args:
        pictures: file name → SVG.
        force: replace a page that is not a report.

    Returns:
        the pictures' paths.
    """
    figures = _figures(out)
    with system_errors(out):
        ours = out.exists() and _is_report(out)
        before = _named(out) if ours else set()
        figures.mkdir(exist_ok=True)
        for name, svg in pictures.items():
            write_atomic(figures / name, svg, force=True)
        write_atomic(out, page, force=force or ours)
        for name in before - pictures.keys():
            (figures / name).unlink(missing_ok=True)
    return [figures / name for name in pictures]


def _figures(out: Path) -> Path:
    return out.with_name(f"{out.stem}-figures")


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK in file.read(200)


def _named(page: Path) -> set[str]:
    """The pictures that a report names; other names are ignored."""
    match = FIGURES.search(page.read_text(encoding="utf-8", errors="replace"))
    return {name for name in (match[1].split() if match else ()) if FIGURE.fullmatch(name)}
