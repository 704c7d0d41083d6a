"""Runs spread over the GPUs of the machine, as far as a sweep may use them."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from superlora_cli.sweeping import conduct
from superlora_cli.sweeping.folder import SweepFolder
from superlora_cli.sweeping.plan import load_plan
from tests.sweeping.conftest import TINY, Write


@pytest.fixture
def folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """Of four runs whose workers tell which GPU they see, on a machine of three GPUs."""
    monkeypatch.setattr(conduct, "WORK", "tests.sweeping.placing:carry_out")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = write(TINY)
    made = SweepFolder(path.parent / "out", load_plan(path))
    made.prepare()
    return made


def seen(folder: SweepFolder, workers: int | None = None) -> dict[str, str | None]:
    """Run → the GPUs that its worker saw, with a worker for every run unless `workers` says otherwise."""
    jobs = deque(folder.job(run) for run in folder.plan.checked())
    events = conduct.events_of(jobs, workers or len(jobs), workers, None, folder.path)
    return {event.job.id: event.outcome.error for event in events if event.outcome}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, ["0", "1", "2", "0"]),
        ("5,GPU-8a", ["5", "GPU-8a", "5", "GPU-8a"]),
        (" 2 ", ["2", "2", "2", "2"]),
        ("", ["", "", "", ""]),
        ("1,-1,2", ["1", "1", "1", "1"]),  # what follows -1 is hidden
        ("-1", ["-1", "-1", "-1", "-1"]),
    ],
)
def test_workers_take_the_gpus_in_turn(
    named: str | None, expected: list[str], folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    found = seen(folder)
    assert [found[run.id] for run in folder.plan.runs] == expected


def test_without_gpus_the_variable_is_left_alone(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert set(seen(folder, 2).values()) == {None}


@pytest.mark.parametrize(("named", "workers"), [(None, 3), ("4,7", 2), ("1,-1,2", 1)])
def test_by_default_there_is_one_worker_per_gpu(
    named: str | None, workers: int, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    jobs = [folder.job(run) for run in folder.plan.runs]
    assert conduct.usual_workers(jobs) == workers


def test_hidden_gpus_do_not_make_it_one_worker(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [folder.job(run) for run in folder.plan.runs]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    without = conduct.usual_workers(jobs)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert conduct.usual_workers(jobs) == without
