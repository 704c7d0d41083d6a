"""Every run of a sweep is done once and in its results once, whatever the number of workers and whatever stops them."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from superlora_cli.files import read_json
from superlora_cli.recipe.yaml import read_yaml
from tests.conftest import Cli, contents, run_cli
from tests.forking.commands import FORKED, Commands
from tests.sweeping.conftest import TINY, Write
from tests.training.launching import spoken, wait_for
from tests.training.test_signals import survivors

pytestmark = pytest.mark.slow

Sweep = Callable[..., dict[str, Any]]

LONG = """\
recipe: quickstart
set: {train.steps: 60, eval.every: 60, train.checkpoint_every: 10, train.batch_size: 16}
grid: {adapter.rank: [1, 2, 3]}
"""
FAILING = """\
recipe: quickstart
set: {train.steps: 2}
runs: [{recipe: digits_lora, train.optimizer.lr: 1e30}, {adapter.rank: 1}, {train.optimizer.name: Adamm}]
"""
IMAGES = """\
recipe: digits_unet_lorta5d
set: {train.steps: 2, eval.every: 2, train.checkpoint_every: 2, eval.batch_size: 64}
measure: {against: "digits:test", extractor: digits, num: 24, sampler: dpm++, steps: 2}
"""


@pytest.fixture
def sweep(commands: Commands, tmp_path: Path) -> Sweep:
    """Carries out a sweep in a process of its own, its workers forked, and gives what it said."""

    def carry_out(*words: str | Path) -> dict[str, Any]:
        done = commands.start("sweep", *words, "--json", cwd=tmp_path, setup=FORKED).done
        assert done.code == 0, done.out
        return done.json()

    return carry_out


def results(folder: str | Path) -> list[dict[str, str]]:
    with (Path(folder) / "results.csv").open() as file:
        return list(csv.DictReader(file))


def bytes_of(folder: str | Path) -> dict[str, bytes]:
    """What must not depend on how the sweep was carried out."""
    names = ("adapter.safetensors", "eval.json", "recipe.yaml", "results.csv")
    return {name: data for name, data in contents(Path(folder)).items() if name.endswith(names)}


def finished(folder: str | Path) -> dict[str, int]:
    """Run → when its file was written, of those that are finished."""
    found = {}
    for path in Path(folder).glob("runs/*/run.json"):
        if read_json(path).get("status") == "completed" and (path.parent / "adapter.safetensors").is_file():
            found[path.parent.name] = (path.parent / "adapter.safetensors").stat().st_mtime_ns
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small sweep, carried out by one worker, which was not forked; read only."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(TINY)
    found = run_cli("sweep", folder / "sweep.yaml", "--out", folder / "out", "--workers", "1", "--json").json()
    assert (found["status"], found["runs"], found["completed"], found["failed"]) == ("completed", 4, 4, 0)
    return folder / "out"


def test_every_run_is_in_the_results_once_and_is_an_ordinary_run(whole: Path, cli: Cli) -> None:
    rows = results(whole)
    assert [(row["adapter.rank"], row["seed"]) for row in rows] == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")]
    assert {row["status"] for row in rows} == {"completed"}
    assert [row["parameters"] for row in rows] == ["45", "45", "90", "90"]
    lines = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert all(line["seconds"] > 0 for line in lines)
    evaluated = cli("eval", whole / lines[3]["run"], "--json").json()
    assert evaluated["metrics"]["accuracy"] == float(rows[3]["accuracy"])


def test_every_run_of_a_sweep_can_find_its_rate(write: Write, sweep: Sweep) -> None:
    shared = "{train.steps: 2, eval.every: 2, train.batch_size: 8, train.optimizer.lr: find}"
    found = sweep(write(f"recipe: quickstart\nset: {shared}\ngrid: {{adapter.rank: [1, 2]}}"), "--workers", "1")
    rates = [float(row["found_rate"]) for row in results(found["out"])]
    recipes = [read_yaml(path).data for path in sorted(Path(found["out"]).glob("runs/*/recipe.yaml"))]
    assert [recipe["train"]["optimizer"]["lr"] for recipe in recipes] == rates
    assert all(0.001 < rate < 1 for rate in rates)


def test_the_number_of_workers_changes_no_byte(whole: Path, write: Write, sweep: Sweep) -> None:
    sweep(write(TINY), "--out", "out", "--workers", "2")
    assert bytes_of("out") == bytes_of(whole)


def test_one_by_one_by_index_is_the_same_sweep(whole: Path, write: Write, sweep: Sweep) -> None:
    path = write(TINY)
    for index in (2, 0, 3):
        found = sweep(path, "--out", "out", "--index", str(index))
        assert (found["runs"], found["completed"]) == (1, 1)
    assert [row["id"] for row in results("out")] == [results(whole)[index]["id"] for index in (0, 2, 3)]
    before = finished("out")
    sweep(path, "--out", "out")  # does what is missing
    assert before.items() <= finished("out").items()
    assert bytes_of("out") == bytes_of(whole)
    result = run_cli("sweep", path, "--out", "out", "--index", "4")
    assert (result.code, "the sweep has 4 runs" in result.message) == (2, True)


def test_finished_runs_are_kept_and_broken_ones_repeated(whole: Path, write: Write, sweep: Sweep) -> None:
    path = write(TINY)
    sweep(path, "--out", "out")
    before, (first, second, *_) = finished("out"), sorted(Path("out/runs").iterdir())
    (first / "adapter.safetensors").unlink()
    (second / "run.json").write_text("{")
    sweep(path, "--out", "out")
    after = finished("out")
    assert {name for name in before if before[name] != after[name]} == {first.name, second.name}
    assert bytes_of("out") == bytes_of(whole)


def test_a_failed_run_is_reported_and_retried_and_stops_no_other(
    write: Write, commands: Commands, tmp_path: Path
) -> None:
    path = write(FAILING)
    for _ in range(2):
        result = commands.start("sweep", path, "--out", "out", "--json", cwd=tmp_path, setup=FORKED).done
        assert result.code == 1
        found = result.json()
        assert (found["status"], found["completed"], found["failed"], found["left"]) == ("failed", 1, 2, 0)
        first, last = found["errors"]
        assert "NaN or Inf at step" in first["error"]
        assert "Adamm" in last["error"]
        rows = results("out")
        assert [row["status"] for row in rows] == ["failed", "completed", "failed"]
        assert all("\n" not in row["error"] and str(Path.cwd()) not in row["error"] for row in rows)


def test_a_worker_that_is_killed_takes_one_run_with_it(
    whole: Path, write: Write, sweep: Sweep, commands: Commands, tmp_path: Path
) -> None:
    path = write(LONG)
    process = commands.start("sweep", path, "--out", "out", "--workers", "1", "--json", cwd=tmp_path, setup=FORKED)
    wait_for(lambda: list(Path("out/runs").glob("*/checkpoints/step-*/COMPLETE")), process)
    victims = [
        child for child in psutil.Process(process.pid).children() if "resource_tracker" not in str(child.cmdline())
    ]
    victims[0].kill()
    result = process.done
    assert result.code == 1
    found = result.json()
    assert (found["completed"], found["failed"]) == (2, 1)
    assert "SIGKILL" in found["errors"][0]["error"]
    assert sweep(path, "--out", "out")["completed"] == 3


def test_a_killed_sweep_continues_and_repeats_no_finished_run(
    write: Write, sweep: Sweep, commands: Commands, tmp_path: Path
) -> None:
    path = write(LONG)
    process = commands.start("sweep", path, "--out", "out", "--workers", "2", cwd=tmp_path, setup=FORKED)
    wait_for(lambda: len(finished("out")) >= 1, process)
    process.kill(signal.SIGKILL, group=True)
    assert process.done.code == -signal.SIGKILL
    before = finished("out")
    assert 1 <= len(before) < 3
    assert sweep(path, "--out", "out", "--workers", "2")["completed"] == 3
    assert before.items() <= finished("out").items()
    assert len({row["id"] for row in results("out")}) == len(results("out")) == 3
    sweep(path, "--out", "calm", "--workers", "2")
    assert bytes_of("out") == bytes_of("calm")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_workers_which_save(
    number: signal.Signals, write: Write, commands: Commands, tmp_path: Path
) -> None:
    setup = () if number == signal.SIGINT else FORKED  # an interrupt reaches workers, who begin in a way of their own
    process = commands.start("sweep", write(LONG), "--out", "out", "--workers", "2", cwd=tmp_path, setup=setup)
    saved = "*/checkpoints/step-*/COMPLETE"  # a run that has not begun to train has nothing to save
    wait_for(lambda: len({path.parts[2] for path in Path("out/runs").glob(saved)}) == 2, process)
    process.kill(number, group=number == signal.SIGINT)
    result = process.done
    assert result.code == 130, result.err
    (line,) = spoken(result)
    assert "of 3 runs done (the same command continues it)" in line
    assert "Traceback" not in result.err
    assert survivors(process.pid) == []
    states = [json.loads(path.read_text()) for path in Path("out/runs").glob("*/run.json")]
    stopped = [state for state in states if state["status"] == "interrupted"]
    assert stopped
    assert all("saved" in state["error"] for state in stopped)


def test_workers_stop_and_save_where_the_sweep_itself_is_gone(write: Write, commands: Commands, tmp_path: Path) -> None:
    process = commands.start("sweep", write(LONG), "--out", "out", "--workers", "1", cwd=tmp_path, setup=FORKED)
    wait_for(lambda: list(Path("out/runs").glob("*/checkpoints/step-*/COMPLETE")), process)
    process.kill(signal.SIGKILL)
    assert process.done.code == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while survivors(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert survivors(process.pid) == []


def test_what_diffusion_runs_generate_is_measured_once(write: Write, sweep: Sweep) -> None:
    path = write(IMAGES)
    sweep(path, "--out", "out")
    (row,) = results("out")
    assert float(row["fid"]) > 0
    assert float(row["class_accuracy"]) >= 0
    before = contents(Path("out/runs"))
    sweep(path, "--out", "out")
    assert contents(Path("out/runs")) == before
    trained = finished("out")
    sweep(write(IMAGES.replace("num: 24", "num: 26")), "--out", "out")  # images anew, and no training
    assert finished("out") == trained
    assert len(list(Path("out").glob("runs/*/samples/images/*.png"))) == 26


def test_a_dry_run_lists_counts_and_estimates_and_writes_nothing(write: Write, tmp_path: Path) -> None:
    path = write(TINY + "runs: [{recipe: digits_lora, adapter.rank: 65}]\n")
    result = run_cli("sweep", path, "--dry-run", "--json")
    assert result.code == 2  # for the one that cannot be
    found = result.json()
    assert [run["params"].get("adapter") for run in found["runs"]] == [45, 45, 90, 90, None, None]
    assert [run["status"] for run in found["runs"]] == ["to do"] * 4 + ["impossible"] * 2
    assert (found["time"]["steps"], found["time"]["seconds"] > 0) == (24, True)
    assert list(tmp_path.iterdir()) == [tmp_path / "sweep.yaml"]
    assert run_cli("sweep", path).code == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "sweep.yaml"]


def test_a_folder_of_something_else_is_refused(write: Write) -> None:
    Path("out").mkdir()
    Path("out/letters.txt").write_text("mine")
    result = run_cli("sweep", write(TINY), "--out", "out")
    assert (result.code, "holds no sweep" in result.message) == (2, True)
