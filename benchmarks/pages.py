"""Tables, and the places of a page that benchmarks fill: from a line `<!-- name -->` to `<!-- name end -->`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
Places = dict[tuple[Path, str], str]  # page, name → what stands there


def read(page: Path, name: str) -> str:
    """The current content of a place, without its final line break.

    Raises:
        ValueError: the page has no such place, or more than one.
    """
    return _parts(page, name)[1].removesuffix("\n")


def fill(places: Places) -> None:
    """Replace the content of some places.

    Raises:
        ValueError: as `read` does.
    """
    for (page, name), text in places.items():
        before, _, after = _parts(page, name)
        page.write_text(f"{before}{text}\n{after}", encoding="utf-8")


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown; columns whose name begins with < are text, the others numbers."""
    columns = list(columns)
    rule = "|".join("---" if name.startswith("<") else "---:" for name in columns)
    lines = ["| " + " | ".join(name.removeprefix("<") for name in columns) + " |", f"|{rule}|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    """The text before, in and after a place; its marks belong to before and after."""
    start, end = f"<!-- {name} -->\n", f"<!-- {name} end -->"
    text = page.read_text(encoding="utf-8")
    if (text.count(start), text.count(end)) != (1, 1):
        raise ValueError(f"{page.name} should have one line '{start.strip()}' and one '{end}'")
    before, _, rest = text.partition(start)
    inside, _, after = rest.partition(end)
    return before + start, inside, end + after
