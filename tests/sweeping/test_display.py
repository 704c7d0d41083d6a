"""The live table counts, names the best, and says how long it may take; elsewhere there is a line per run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from superlora_cli.reporting.metrics import METRICS, Metric
from superlora_cli.sweeping.display import Board, best_of
from superlora_cli.sweeping.folder import SweepFolder, as_csv
from superlora_cli.sweeping.plan import load_plan
from superlora_cli.sweeping.work import Event, Outcome
from tests.conftest import Cli
from tests.sweeping.conftest import TINY, Write


def end(folder: SweepFolder, number: int, **about: object) -> None:
    """As if a run had ended."""
    path = folder.of(folder.plan.runs[number])
    path.mkdir(parents=True)
    (path / "adapter.safetensors").touch()
    (path / "run.json").write_text(json.dumps({"steps": 6, "bytes": 9, **about}))


@pytest.fixture
def folder(write: Write) -> SweepFolder:
    made = SweepFolder(Path("out"), load_plan(write(TINY)))
    made.prepare()
    end(made, 0, status="completed", metrics={"accuracy": 0.5, "val_accuracy": 0.25})
    end(made, 1, status="failed", error=f"{Path('out').absolute()}/runs/x: NaN")
    end(made, 2, status="completed", metrics={"accuracy": 0.4, "val_accuracy": 0.75})
    end(made, 3, status="running")
    return made


def board(folder: SweepFolder, **how: bool) -> tuple[Board, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, width=100, **how)  # type: ignore[arg-type]
    return Board(folder, folder.plan.runs, folder.rows(), console, workers=2, quiet=False), text


def test_the_table_counts_names_the_best_and_estimates(folder: SweepFolder) -> None:
    shown, text = board(folder, force_terminal=False)
    last = folder.plan.runs[3]
    shown.tell(Event(folder.job(last)), folder.rows())
    (folder.of(last) / "metrics.jsonl").write_text('{"step": 3, "loss": 1}\n')
    shown.speeds.append(10.0)
    shown.console.print(shown.table())
    said = text.getvalue()
    assert "done 2  failed 1  running 1  waiting 0  about 15 s left" in said
    assert f"best val_accuracy 0.75  {folder.plan.runs[2].id}" in said
    assert f"{last.id}  3/6" in said


def test_without_a_terminal_there_is_a_line_per_run(folder: SweepFolder) -> None:
    shown, text = board(folder, force_terminal=False)
    with shown:
        for number, outcome in ((0, Outcome("completed")), (1, Outcome("failed", "NaN at step 2"))):
            job = folder.job(folder.plan.runs[number])
            shown.tell(Event(job), folder.rows())
            shown.tell(Event(job, outcome), folder.rows())
    first, second, third = text.getvalue().splitlines()
    assert first == "sweep: 4 runs, 2 of them done, 2 at a time"
    assert second.endswith(f"{folder.plan.runs[0].id}  val_accuracy 0.25")
    assert third.endswith(f"{folder.plan.runs[1].id}  NaN at step 2")


def test_a_finished_sweep_names_its_best_run(write: Write, cli: Cli) -> None:
    file = write(TINY)
    made = SweepFolder(Path("out"), load_plan(file))
    made.prepare()
    for number, accuracy in enumerate((0.25, 0.75, 0.5, 0.1)):
        end(made, number, status="completed", metrics={"accuracy": 1 - accuracy, "val_accuracy": accuracy})
    best, name = cli("sweep", file, "--out", "out", "--json").json()["best"], made.plan.runs[1].id
    assert best == {
        "id": name,
        "run": f"out/runs/{name}",
        "chosen_by": "val_accuracy",
        "metrics": {"accuracy": 0.25, "val_accuracy": 0.75},
    }
    assert "val_accuracy 0.75, accuracy 0.25" in cli("sweep", file, "--out", "out").out


def test_a_metric_from_outside_chooses_the_best_run_too() -> None:
    rows: Any = [{"status": "completed", "metrics": {"loss": loss, "val_psnr": 10 * loss}} for loss in (1.0, 3.0, 2.0)]
    assert best_of(rows) is None
    METRICS.add("psnr", Metric("psnr", "PSNR", higher=True, of_images=False))
    try:
        assert best_of(rows) is rows[1]
    finally:
        METRICS.remove("psnr")


def test_results_are_those_of_runs_that_ended(folder: SweepFolder) -> None:
    lines = as_csv(folder.write_results()).splitlines()
    assert lines[0] == (
        "id,recipe,seed,adapter.rank,status,parameters,head,steps,bytes,accuracy,val_accuracy,error"
    )  # fmt: skip
    ids = [run.id for run in folder.plan.runs]
    assert lines[1:] == [
        f"{ids[0]},quickstart,0,1,completed,45,0,6,9,0.5,0.25,",
        f"{ids[1]},quickstart,1,1,failed,45,0,6,9,,,runs/x: NaN",
        f"{ids[2]},quickstart,0,2,completed,90,0,6,9,0.4,0.75,",
    ]
