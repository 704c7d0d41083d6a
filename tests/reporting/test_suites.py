"""Means over the data sets of a suite, with the learning rate that is best on each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from superlora_cli.data.suites import SUITES
from superlora_cli.reporting.runs import collect
from superlora_cli.reporting.sections import sections
from superlora_cli.reporting.suites import suite_tables
from tests.conftest import Cli
from tests.reporting.folders import make_run

NATURAL, SPECIALIZED, STRUCTURED = (list(group) for group in SUITES["vtab"].groups.values())


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """LoRA on all of VTAB-1k, at two rates on one set; the probe without one; and a run of something else."""
    for number, name in enumerate((*NATURAL, *SPECIALIZED, *STRUCTURED)):
        group = 0.8 if name in NATURAL else 0.6 if name in SPECIALIZED else 0.4
        words = (f"data.name=vtab/{name}", "data.validation=0")
        make_run(tmp_path / f"lora{number}", "vtab_lora", *words, accuracy=group, validation=0.5)
        if name != "svhn":
            make_run(tmp_path / f"probe{number}", "vtab_probe", *words, accuracy=group - 0.1, validation=0.5)
    more = ("data.name=vtab/dtd", "data.validation=0", "train.optimizer.lr=0.1")
    make_run(tmp_path / "rate", "vtab_lora", *more, accuracy=0.1, validation=0.7)  # chosen by validation
    make_run(tmp_path / "other", "digits_lora", accuracy=0.9)
    return tmp_path


def test_means_are_of_groups_and_all_at_the_best_rate_of_each_set(swept: Path) -> None:
    (table,) = suite_tables(sections(collect([swept])[0])[0])
    assert table.title == "VTAB-1k: vit_base_patch16_224.orig_in21k"
    assert table.columns == ("Natural", "Specialized", "Structured", "groups", "all")
    lora, probe = table.rows
    natural = (6 * 0.8 + 0.1) / 7
    assert lora.means == pytest.approx({
        "Natural": natural, "Specialized": 0.6, "Structured": 0.4, "groups": (natural + 1) / 3,
        "all": (7 * natural + 4 * 0.6 + 8 * 0.4) / 19,
    })  # fmt: skip
    assert lora.by_set["dtd"] == 0.1
    assert probe.means == pytest.approx({"Specialized": 0.5, "Structured": 0.3})  # without SVHN


@pytest.mark.slow
def test_a_report_shows_the_means_first(swept: Path, cli: Cli) -> None:
    found = cli("report", str(swept), "--out", "report.html", "--json").json()
    assert [row["method"] for row in found["suites"][0]["rows"]] == ["LoRA", "head alone"]
    page = Path("report.html").read_text()
    assert page.index("<h2>VTAB-1k") < page.index("<h2>classification")
    assert "0.700" in page[page.index("<h2>VTAB-1k") : page.index("<h2>classification")]
    said = cli("report", str(swept), "--out", "report.html").out
    assert "Natural · Specialized · Structured · groups · all" in said
    assert "— · 0.5 · 0.3 · — · —" in said


def test_without_a_suite_there_is_no_table(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "other", "digits_lora")
    assert "suites" not in cli("report", "other", "--out", "report.html", "--json").json()
