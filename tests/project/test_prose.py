"""Pages are readable as plain text: prose stays within 120 columns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "DEVELOPERS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / name for name in NAMES), ROOT / "benchmarks" / "README.md", *DOCS]
WIDTH = 120


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line outside of tables, code blocks and places that benchmarks fill."""
    filled, code = None, False
    for number, line in enumerate(text.splitlines(), 1):
        if filled is None and (mark := re.fullmatch(r"<!-- ([^:]+) -->", line)):
            filled = mark[1]
        elif line == f"<!-- {filled} end -->":
            filled = None
        elif line.startswith("```"):
            code = not code
        elif filled is None and not code and not line.startswith("|"):
            yield number, line


def too_long(line: str) -> bool:
    """Whether a line is wider than allowed, and could be broken."""
    return len(line) > WIDTH and " " in line.lstrip(" -")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_stays_within_the_line_length(page: Path) -> None:
    lines = prose(page.read_text(encoding="utf-8"))
    assert not [f"{page.name}:{number}" for number, line in lines if too_long(line)]


def test_only_prose_that_could_be_broken_counts() -> None:
    wide, link = "word " * 30, f"- [x](https://{'y' * 120})"
    text = f"{wide}\n<!-- a -->\n{wide}\n<!-- a end -->\n| {wide} |\n```\n{wide}\n```\n{link}\n{wide}"
    assert [number for number, line in prose(text) if too_long(line)] == [1, 10]
