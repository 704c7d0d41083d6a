"""The site of docs/ builds without a warning, and has everything that its pages link to in two clicks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[2]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def build(repository: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with this one's configuration of the site, and a few pages of its own."""
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# A notebook\n\n[back](../docs/deep/page.md#a-part)"),
            new_code_cell("1 + 1", outputs=[new_output("display_data", {"image/png": PIXEL})]),
        ]
    )
    files = {
        "README.md": "# Read me\n\n[page](docs/deep/page.md) ![drawing](docs/drawing.svg) [license](LICENSE)",
        "LICENSE": "free",
        "docs/index.md": "# Start\n\n**One** · [the\nREADME](../README.md) · [page](deep/page.md)\n\n"
        "**Two** · [notebook](../examples/one.ipynb)\n",
        "docs/deep/page.md": "# Page\n\n## A part\n\n[home](../../README.md#read-me) [elsewhere](https://example.org)",
        "docs/drawing.svg": "<svg/>",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "examples").mkdir()
    write(notebook, tmp_path / "examples" / "one.ipynb")
    for name in ("mkdocs.yml", "docs/repository.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def links(page: Path) -> set[str]:
    return set(re.findall(r'(?:href|src)="([^":]+)"', page.read_text(encoding="utf-8")))


def test_files_outside_docs_are_on_the_site_with_their_own_links(repository: Path) -> None:
    out = repository / "out"
    done = build(repository, out)
    assert done.returncode == 0, done.stderr
    assert {"../deep/page/", "../drawing.svg", "LICENSE"} <= links(out / "repository" / "index.html")
    assert "../../repository/#read-me" in links(out / "deep" / "page" / "index.html")
    notebook = out / "repository" / "examples" / "one" / "index.html"
    assert {"../../../deep/page/#a-part", "../one_1_0.png"} <= links(notebook)
    assert (notebook.parents[1] / "one_1_0.png").is_file()


@pytest.mark.parametrize(
    ("link", "said"),
    [("[a](../GONE.md)", "GONE.md"), ("[a](deep/page.md#gone)", "gone"), ("[a](gone.svg)", "gone.svg")],
)
def test_a_link_to_nowhere_fails(repository: Path, link: str, said: str) -> None:
    index = repository / "docs" / "index.md"
    index.write_text(f"{index.read_text()}\n{link}\n")
    done = build(repository, repository / "out")
    assert done.returncode == 1
    assert said in done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_one_click_from_the_start(site: Path) -> None:
    pages = {page.parent.relative_to(site).as_posix() for page in site.rglob("index.html")} - {"."}
    assert pages >= {"choosing", "api", "repository", "repository/examples/python"}
    assert pages <= {link.rstrip("/") for link in links(site / "index.html")}


def test_the_reference_has_every_public_function(site: Path) -> None:
    import superlora_cli

    anchors = set(re.findall(r'id="superlora_cli\.(\w+)"', (site / "api" / "index.html").read_text()))
    assert {name for name in superlora_cli.__all__ if not name.startswith("_")} <= anchors
