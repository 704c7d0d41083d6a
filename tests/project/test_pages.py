"""The figures that README and docs quote are those on record beside the benchmarks that measured them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


FILLING = [
    "bytes",
    "digits",
    "exports",
    "families",
    "faults",
    "figures",
    "first_recipe",
    "generation",
    "head_to_head",
    "loops",
]
FILLING += ["gpu", "language", "rates", "real_base", "report", "speed", "text_to_image", "transcripts", "transfer"]


@pytest.mark.parametrize("benchmark", FILLING)
def test_a_page_agrees_with_the_records(benchmark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import pages

    places = importlib.import_module(benchmark).places()
    assert places
    for (page, name), text in places.items():
        assert pages.read(page, name) == text, f"{page.name}, {name}"


def test_a_generated_place_is_filled_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import pages

    page = tmp_path / "page.md"
    text = "before\n<!-- a -->\n{}<!-- a end -->\nafter\n<!-- b -->\n{}<!-- b end -->\n"
    page.write_text(text.format("old\n", ""))
    pages.fill({(page, "a"): "new\nlines", (page, "b"): "more"})
    assert page.read_text() == text.format("new\nlines\n", "more\n")
    assert pages.read(page, "a") == "new\nlines"
    with pytest.raises(ValueError, match=r"page.md should have one line '<!-- c -->'"):
        pages.fill({(page, "c"): ""})
