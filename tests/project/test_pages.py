"""The figures that README and docs quote are those on record beside the benchmarks that measured them."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
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


def test_rows_are_recorded_as_they_come_and_replaced_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from recorded import Records

    records = Records(tmp_path / "rows.jsonl", lambda row: row["key"])
    assert records.known() == {}
    records.add({"key": "ρ", "found": 1})
    with ThreadPoolExecutor(1) as pool:
        records.make(lambda key, found: {"key": key, "found": found}, {"ρ": ("ρ", 2), "b": ("b", 3)}, pool)
    lines = ['{"key": "ρ", "found": 1}', '{"key": "b", "found": 3}']
    assert records.file.read_text().splitlines() == lines
    records.replace("ρ", [{"key": "ρ", "found": 4}, {"key": "ρ", "found": 5}], ["b", "ρ", "c"])
    assert [row["found"] for row in records.rows()] == [3, 4, 5]
    assert records.known()["ρ"]["found"] == 5
