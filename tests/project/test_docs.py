"""Every page can be reached from the index, every link leads somewhere, and the tutorial's commands do what it says."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.project.shown import carry_out

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
    lines = gallery.read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[2:-1] for line in lines if line.startswith("| [")]
    assert len(rows) >= 5
    for task, *cells in rows:
        (link,) = re.findall(r"\]\(([^)#]+)", task)
        shown = (gallery.parent / link).read_text(encoding="utf-8")
        numbers = re.findall(r"\d[\d,.]*\d", " ".join(cells))
        assert numbers
        assert not [number for number in numbers if not re.search(rf"(?<![\d,.]){re.escape(number)}(?![\d])", shown)]


@pytest.mark.slow
def test_the_tutorial_ends_with_a_served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for language, block in re.findall(r"```(\w*)\n(.*?)```", (DOCS / "tutorial.md").read_text(), flags=re.S):
        if language == "python":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
        elif block.startswith("superlora "):
            for line in block.splitlines():
                carry_out(line)
        else:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(["bash", "-ec", block], env={**environment(), "PATH": path}, check=True)
    answer = json.loads(Path("answer.json").read_text())
    with Path("unsorted.csv").open() as file:
        predicted = {row["file"]: row for row in csv.DictReader(file)}
    assert predicted["0003.png"]["class"] == answer["class"]
    assert float(predicted["0003.png"]["probability"]) == pytest.approx(answer["probability"], abs=1e-3)
    assert len(predicted) == 20
    assert Path("confusion.svg").is_file()
    assert Path("runs/report.html").is_file()
