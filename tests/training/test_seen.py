"""What one sees of a training: metrics, run.json, a trace, trackers, progress."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from superlora_cli.training import trackers
from superlora_cli.training.display import BAR, Display
from superlora_cli.training.meter import Figures
from tests.cli.test_train import lose_power, stop_at
from tests.conftest import QUICK, Cli, contents

pytestmark = pytest.mark.slow

LOGGED = (*QUICK, "train.log_every=2")
TENSORBOARD = (*LOGGED, "output.trackers=[tensorboard]")
WANDB = (*LOGGED, "output.trackers=[wandb]")


def about(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "run.json").read_text())
    assert isinstance(content, dict)
    return content


# Files


def test_every_line_of_training_metrics_says_what_it_cost(cli: Cli) -> None:
    assert cli("train", *LOGGED).code == 0
    lines = [json.loads(line) for line in Path("runs/quickstart/metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [2, 4, 6]
    for line in training:
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert line["memory"] > 1_000_000


def test_run_json_records_place_settings_and_cost(trained: Path) -> None:
    said = about(trained)
    assert said["environment"].keys() >= {
        "device", "processes", "threads", "superlora", "python", "torch", "timm", "platform", "processors", "git"
    }  # fmt: skip
    assert (said["environment"]["processes"], said["environment"]["threads"]) == (1, 1)
    assert len(said["data"]) == 64
    assert said["params"] == {"adapter": 90, "head": 0, "base": said["params"]["base"]}
    assert said["status"] == "completed"
    assert said["images_per_second"] > 0
    assert 0 <= said["data_wait"] <= 1
    assert said["peak_memory"] > 1_000_000
    assert len(said["id"]) == 32


def test_a_resumed_run_keeps_its_id_and_a_new_one_gets_another(trained: Path, cli: Cli) -> None:
    shutil.copytree(trained, "run")
    before = about(Path("run"))["id"]
    assert cli("train", *QUICK, "--resume", "run").code == 0
    assert about(Path("run"))["id"] == before
    assert cli("train", *QUICK, "--out", "run", "--force").code == 0
    assert about(Path("run"))["id"] != before


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_a_trace_is_json_that_perfetto_reads_however_short_the_run(steps: int, cli: Cli) -> None:
    words = ("train.profile=true", f"train.steps={steps}", "train.scheduler={name: constant}")
    result = cli("train", *QUICK, *words, "--out", "run")
    assert result.code == 0, result.err
    if steps > 1:
        trace = json.loads(gzip.decompress(Path("run/trace.json.gz").read_bytes()))
        names = {event.get("name", "") for event in trace["traceEvents"]}
        assert any("ProfilerStep" in name for name in names)
        assert any(name.startswith("aten::") for name in names)


def test_a_finished_run_that_asks_for_a_trace_resumes_like_any_other(trained: Path, cli: Cli) -> None:
    shutil.copytree(trained, "run")
    result = cli("train", *QUICK, "train.profile=true", "--resume", "run")
    assert result.code == 0, result.err
    assert about(Path("run"))["status"] == "completed"


# Trackers


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag, as TensorBoard shows them."""
    (run,) = {path.parent for path in (folder / "tensorboard").rglob("events*") if path.parent.name == "superlora"}
    found = EventAccumulator(str(run)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_the_metrics_at_their_steps(cli: Cli) -> None:
    assert cli("train", *TENSORBOARD, "--out", "run").code == 0
    seen = scalars(Path("run"))
    assert [step for step, _ in seen["train/loss"]] == [2, 4, 6]
    assert [step for step, _ in seen["train/lr"]] == [2, 4, 6]
    assert [step for step, _ in seen["eval/accuracy"]] == [3, 6]
    written = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [value for _, value in seen["train/loss"]] == pytest.approx([x["loss"] for x in written if "loss" in x])
    assert {"train/images_per_second", "train/data_wait", "train/memory", "eval/loss"} <= seen.keys()


def test_after_a_resume_tensorboard_shows_every_step_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 6, lose_power)  # steps 4 and 5 are past the checkpoint of step 3: they are trained twice
    words = (*TENSORBOARD, "train.log_every=1", "--out", "run")
    assert cli("train", *words).code == 1
    assert cli("train", *words, "--resume", "auto").code == 0
    seen = scalars(Path("run"))
    assert [step for step, _ in seen["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in seen["eval/accuracy"]] == [3, 6]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)


def offline_ids(folder: Path) -> Counter[str]:
    return Counter(path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*"))


@pytest.mark.usefixtures("offline")
def test_wandb_has_the_run_under_its_own_id_also_when_resumed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 5, lose_power)
    assert cli("train", *WANDB, "--out", "run").code == 1
    run_id = about(Path("run"))["id"]
    assert offline_ids(Path("run")).keys() == {run_id}
    resumed = cli("train", *WANDB, "--out", "run", "--resume", "auto", "--json")
    assert resumed.json()["status"] == "completed"
    assert about(Path("run"))["id"] == run_id
    assert offline_ids(Path("run")).keys() == {run_id}
    assert list(Path("run/wandb").rglob("*.wandb"))


def test_a_forced_start_removes_the_files_of_trackers_and_profiler(cli: Cli) -> None:
    assert cli("train", *TENSORBOARD, "train.profile=true", "--out", "run").code == 0
    Path("run/wandb/offline-run-1").mkdir(parents=True)
    Path("run/wandb/offline-run-1/x.wandb").write_bytes(b"")
    assert {name.split("/")[0] for name in contents(Path("run"))} >= {"tensorboard", "wandb", "trace.json.gz"}
    assert cli("train", *QUICK, "--out", "run", "--force").code == 0
    assert not {path.name for path in Path("run").iterdir()} & {"tensorboard", "wandb", "trace.json.gz"}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_tracker_is_named_with_its_install_command(
    name: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda wanted: None)
    result = cli("train", *QUICK, f"output.trackers=[jsonl, {name}]")
    assert result.code == 2
    assert f"{name} is not installed (pip install 'superlora-cli[{name}]')" in result.message
    assert not Path("runs/quickstart").exists()


@pytest.mark.usefixtures("offline")
def test_a_tracker_that_fails_to_start_is_one_line_and_leaves_no_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "wandb", refuse)
    result = cli("train", *WANDB, "--out", "run")
    assert result.code == 1
    assert "a tracker does not start: no API key (log in, or set WANDB_MODE=offline)" in result.message
    assert about(Path("run"))["status"] == "failed"


# Progress

FIGURES = Figures(loss=1.2345, bad_step=None, throughput=321.4, data_wait=0.07, memory=3 * 2**29, unit="images")


def shown(*, terminal: bool, quiet: bool = False, steps: int = 10, at: int = 4, width: int = 140) -> str:
    console = Console(force_terminal=terminal, file=io.StringIO(), width=width)
    with Display(console, steps=steps, start=0, quiet=quiet) as display:
        display.step(at, FIGURES, lr=0.05)
        display.say("step 4  accuracy 0.5000")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_step_loss_rate_throughput_waiting_and_memory() -> None:
    words = shown(terminal=True)
    for word in ("4/10", "loss 1.2345", "lr 5.00e-02", "321 images/s", "data 7%", "1.5 GiB", "accuracy 0.5000"):
        assert word in words


@pytest.mark.parametrize(("width", "left_out"), [(100, []), (80, ["data", "GiB"]), (60, ["lr", "data", "GiB"])])
def test_a_narrow_terminal_shows_the_important_columns_in_full(width: int, left_out: list[str]) -> None:
    words = shown(terminal=True, steps=4000, at=400, width=width)
    assert "400/4000" in words
    assert "loss 1.2345" in words
    assert "…" not in words
    assert not [word for word in left_out if word in words]
    bars = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in words.splitlines() if "400/4000" in line]
    assert all(line.count("━") + line.count("╸") >= BAR for line in bars)


def test_without_a_terminal_there_is_a_final_line_and_no_bar() -> None:
    assert "4/10" not in shown(terminal=False)
    line = shown(terminal=False, at=10)
    assert line.startswith("step 10/10  loss 1.2345  lr 5.00e-02  321 images/s  data 7%  1.5 GiB\n")
    assert "\x1b" not in line


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_nothing(terminal: bool) -> None:
    assert shown(terminal=terminal, quiet=True, at=10) == ""
