"""Every page can be reached from the index, and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def links(page: Path) -> set[Path]:
    """The files that a page links to or shows."""
    found = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    return {(page.parent / link).resolve() for link in found if "://" not in link}


def test_every_page_is_in_the_index() -> None:
    assert links(DOCS / "index.md") >= {page for page in PAGES if page.name != "index.md"}
    assert DOCS / "index.md" in links(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not {link for link in links(page) if not link.exists()}
