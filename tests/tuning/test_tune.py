"""A search ends with a recipe and runs, whatever the number of workers and whatever stops it."""

from __future__ import annotations

import csv
import json
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from superlora_cli.files import read_json
from superlora_cli.recipe.load import load_recipe
from superlora_cli.training.run import RunFolder
from tests.conftest import Cli, contents
from tests.forking.commands import FORKED, Commands

WORDS = ("tune", "quickstart", "--budget", "64", "--trials", "9", "--seeds", "2", "--out", "out", "train.steps=6",
         "eval.every=2", "train.checkpoint_every=2", "train.batch_size=16")  # fmt: skip
KILLS = 4


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """What must not depend on how the search was carried out; a run that was stopped has further checkpoints."""
    names = ("adapter.safetensors", "eval.json", "results.csv", "best.yaml", "tune.json", "front.svg")
    found = contents(folder)
    return {name: data for name, data in found.items() if name.endswith(names) and "checkpoints" not in name}


@dataclass(frozen=True)
class Whole:
    """A small search with one worker that nothing disturbed, and how long it took; read only."""

    place: Path
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place, began = tmp_path_factory.mktemp("tune"), time.monotonic()
    found = commands.start(*WORDS, "--workers", "1", "--json", cwd=place, setup=FORKED).done
    assert found.code == 0, found.err
    assert found.json() == read_json(place / "out/tune.json")
    return Whole(place, time.monotonic() - began)


@pytest.fixture
def whole(undisturbed: Whole) -> Path:
    return undisturbed.place


@pytest.mark.slow
def test_it_ends_with_a_recipe_and_finished_runs(whole: Path, cli: Cli, tmp_path: Path) -> None:
    found: dict[str, Any] = json.loads((whole / "out/tune.json").read_text())
    counts = found["trials"]
    assert sum(counts.values()) == 9
    assert counts["stopped"] >= 4
    assert counts["failed"] == 0
    assert {one["trial"] for one in found["finalists"]} >= {0, found["best"]["trial"]}
    rows = results(whole / "out")
    assert len(rows) == counts["finished"] + len(found["finalists"])  # two seeds, one of them the trial's own
    assert all(int(row["parameters"]) <= 64 for row in rows)
    best = load_recipe(whole / "out/best.yaml")
    own = load_recipe(Path(whole / found["best"]["run"]) / "recipe.yaml")
    assert best.to_dict()["adapter"] == own.to_dict()["adapter"]
    assert best.train.optimizer == own.train.optimizer
    assert cli("eval", whole / found["best"]["run"], "--json").code == 0
    assert cli("report", whole / "out", "--out", tmp_path / "page.html", "--json").json()["runs"] == len(rows)
    page = (tmp_path / "page.html").read_text()
    assert f"Skipped {counts['stopped']} runs that were stopped early" in page


@pytest.mark.slow
def test_two_workers_find_the_same(whole: Path, commands: Commands, tmp_path: Path) -> None:
    assert commands.start(*WORDS, "--workers", "2", "--quiet", cwd=tmp_path, setup=FORKED).done.code == 0
    assert bytes_of(tmp_path / "out") == bytes_of(whole / "out")


@pytest.mark.slow
def test_killed_at_random_moments_it_loses_no_trial_and_does_none_twice(
    undisturbed: Whole, commands: Commands, tmp_path: Path
) -> None:
    draw, words = random.Random(0), (*WORDS, "--workers", "1", "--quiet")
    for kill in range(KILLS):
        running = commands.start(*words, cwd=tmp_path, setup=FORKED)
        time.sleep(draw.uniform(0, 1.2 * undisturbed.seconds / KILLS))  # it keeps what it did, so it is over sooner
        running.kill(signal.SIGINT if kill % 3 == 0 else signal.SIGKILL)
        assert running.done.code
    last = commands.start(*words, cwd=tmp_path, setup=FORKED).done
    assert last.code == 0, last.err
    assert bytes_of(tmp_path / "out") == bytes_of(undisturbed.place / "out")


@pytest.mark.slow
def test_a_trial_that_a_killed_search_still_saves_is_waited_for(commands: Commands, tmp_path: Path) -> None:
    words = [*(word if word != "9" else "1" for word in WORDS), "--workers", "1", "--json"]
    begun = commands.start(*words, cwd=tmp_path, setup=FORKED)
    while not (tmp_path / "out/tune.yaml").exists():
        time.sleep(0.1)
    begun.kill(signal.SIGKILL)
    assert begun.done.code
    with RunFolder(tmp_path / "out/runs/trial000").opened():
        running = commands.start(*words, cwd=tmp_path, setup=FORKED)
        time.sleep(6)
    assert running.done.json()["trials"] == {"failed": 0, "finished": 1, "stopped": 0}


@pytest.mark.slow
def test_trials_that_fail_do_not_stop_it(commands: Commands, tmp_path: Path) -> None:
    space = "forms: {LoRTA: {method: lorta, order: 3}}\nranges: {train.optimizer.lr: [1.0e+30, 0.01]}\n"
    (tmp_path / "space.yaml").write_text(space)
    words = [word if word != "9" else "4" for word in WORDS]
    own = ("--budget", "128", "--space", "space.yaml", "--workers", "1", "--json")
    found = commands.start(*words, *own, cwd=tmp_path, setup=FORKED).done
    assert found.code == 0, found.err
    counts = found.json()["trials"]
    assert counts["failed"] > 0
    assert counts["finished"] > 0
    assert "NaN or Inf" in found.json()["errors"][0]["error"]


def test_a_dry_run_lists_the_forms(cli: Cli) -> None:
    found = cli(*WORDS, "--dry-run", "--json").json()
    assert all(row["params"][1] <= 64 for row in found["forms"])
    assert (found["trials"], found["steps"], found["compared_at"]) == (9, 6, 2)
    assert found["time"]["seconds"] > 0
    assert "recommended" in cli(*WORDS, "--dry-run").out
    assert not Path("out").exists()


REFUSED = {
    ("tune", "quickstart"): "one of --budget and --bytes is needed",
    ("tune", "quickstart", "--budget", "9", "--bytes", "9"): "one of --budget and --bytes is needed",
    ("tune", "quickstart", "--budget", "99", "adapter=null", "train.optimizer.lr=0.1"): "adapts no weight",
    ("tune", "quickstart", "--budget", "99", "eval.select=test"): "trials are compared on validation data",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_cannot_be_searched_is_one_clear_line(words: tuple[str, ...], cli: Cli) -> None:
    found = cli(*words)
    assert found.code == 2
    assert REFUSED[words] in found.err
    assert len(found.err.splitlines()) == 1


def test_a_folder_with_something_else_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/own.txt").write_text("mine")
    assert "holds no search" in cli(*WORDS).err
    (tmp_path / "out/tune.yaml").write_text("budget: 65\n")
    found = cli(*WORDS)
    assert (found.code, "holds a search for something else" in found.err) == (2, True)
    assert (tmp_path / "out/tune.yaml").read_text() == "budget: 65\n"


def test_without_optuna_one_line_names_the_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    found = cli(*WORDS)
    assert (found.code, "pip install 'superlora-cli[tune]'" in found.err) == (2, True)
