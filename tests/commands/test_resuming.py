"""A resumed run never gives what it has trained another meaning."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from superlora_cli.files import read_json, write_json
from tests.conftest import QUICK, Cli, contents

MORE = "more train.steps to train it further, or --out with another folder"
OWN = "resume with its own recipe, or give --out another folder"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A complete run, in the current folder."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(
    ("words", "named", "hint"),
    [
        (("train.optimizer.lr=0.9", "eval.select=test"), "eval.select: validation → test, train.optimizer.lr: ", MORE),
        (("train.optimizer.lr=0.9", "adapter.alpha=64"), "is complete, with another recipe: adapter.alpha: ", OWN),
        (("adapter.alpha=64", "train.steps=8"), "another adapter: adapter.alpha: 0.4 → 64.0", OWN),
        (("seed=3", "train.steps=8"), "another adapter: adapter.seed: 0 → 3", OWN),
    ],
)
def test_another_recipe_is_refused_where_it_would_only_be_written_down(
    words: tuple[str, ...], named: str, hint: str, run: Path, cli: Cli
) -> None:
    before = contents(run)
    result = cli("train", *QUICK, *words, "--resume", "run", "--quiet")
    assert result.code == 2
    assert named in result.message
    assert hint in result.message
    assert contents(run) == before


def test_a_complete_run_is_not_judged_on_other_data(run: Path, cli: Cli) -> None:
    write_json(run / "run.json", read_json(run / "run.json") | {"data": "as before an image was added"})
    result = cli("train", *QUICK, "--resume", "run")
    assert (result.code, "is complete, with another recipe: other data" in result.message) == (2, True)


def test_how_it_is_computed_may_change_and_the_log_says_so_and_nothing_of_defaults(run: Path, cli: Cli) -> None:
    words = ("eval.batch_size=64", "adapter.execution=materialised", "train.log_every=3")
    assert cli("train", *QUICK, *words, "--resume", "run", "--quiet").code == 0
    told = [line.split(": ", 1)[1] for line in (run / "log.txt").read_text().splitlines() if "→" in line]
    assert told == [
        "adapter.execution: auto → materialised",
        "eval.batch_size: 256 → 64",
        "train.log_every: 10 → 3",
    ]
