"""Every page can be reached from the index, every link leads somewhere, and the tutorial's commands do what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

ROOT = Path(__file__).parents[2]
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


def test_every_number_of_the_gallery_stands_on_the_page_that_its_row_links_to() -> None:
    gallery = DOCS / "gallery.md"
    rows = [
        line.split("|")[2:-1] for line in gallery.read_text(encoding="utf-8").splitlines() if line.startswith("| [")
    ]
    assert len(rows) >= 5
    for task, *cells in rows:
        (link,) = re.findall(r"\]\(([^)#]+)", task)
        shown = (gallery.parent / link).read_text(encoding="utf-8")
        numbers = re.findall(r"\d[\d,.]*\d", " ".join(cells))
        assert numbers
        assert not [number for number in numbers if not re.search(rf"(?<![\d,.]){re.escape(number)}(?![\d])", shown)]


@pytest.mark.slow
def test_the_tutorial_ends_with_a_served_model(tmp_path: Path) -> None:
    commands = ["set -e", 'superlora() { python -m superlora_cli "$@"; }']
    for language, block in re.findall(r"```(\w*)\n(.*?)```", (DOCS / "tutorial.md").read_text(), flags=re.S):
        if language == "python":
            name = block.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(block)
        else:
            commands.append(block)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", "\n".join(commands)],
        cwd=tmp_path,
        env={**environment(), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, predicted = json.loads((tmp_path / "answer.json").read_text()), (tmp_path / "unsorted.csv").read_text()
    assert f"0003.png,{answer['class']},{answer['probability']:.3f}" in predicted
    assert (tmp_path / "confusion.svg").is_file()
    assert (tmp_path / "runs" / "report.html").is_file()
    assert len((tmp_path / "unsorted.csv").read_text().splitlines()) == 21
