"""Batches that worker processes read, when one of those ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from superlora_cli import progress
from superlora_cli.data import batches
from superlora_cli.data.batches import evaluation_batches
from superlora_cli.data.folder import FolderImages
from superlora_cli.errors import LongUsageError, MismatchError, RunError, SuperLoraError, UsageError
from tests.conftest import Cli, environment
from tests.data.conftest import Terminal
from tests.training.test_signals import survivors

# A worker that takes its time to begin, and a process that is killed meanwhile.
KILLED = """
import os, signal, threading, time
from superlora_cli.data.batches import evaluation_batches
from tests.data.test_batches import Images
os.register_at_fork(after_in_child=lambda: time.sleep(1))
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
list(evaluation_batches(Images(deadly=False), 1, workers=1, pin=False))
"""


class Images(Dataset[tuple[Tensor, int]]):
    """Four images, of which the third ends the process that reads it, if asked to."""

    def __init__(self, *, deadly: bool) -> None:
        self.deadly = deadly

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.deadly and index == 2:
            os._exit(9)
        return torch.zeros(3, 2, 2), index


def read(images: Images) -> list[int]:
    labels = [batch[1] for batch in evaluation_batches(images, 1, workers=1, pin=False)]
    return [int(label) for label in torch.cat(labels)]


def test_a_worker_that_ends_is_one_clear_error() -> None:
    with pytest.raises(RunError, match=r"data\.workers: a loader worker ended unexpectedly .*fewer"):
        read(Images(deadly=True))


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_ends_in_the_middle_of_a_batch_is_the_same_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", broken)
    with pytest.raises(RunError, match="a loader worker ended unexpectedly"):
        read(Images(deadly=False))


def test_a_worker_death_noticed_while_stopping_the_others_is_the_same_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = _MultiProcessingDataLoaderIter._shutdown_workers

    def interrupted(iterator: Any) -> None:
        plain(iterator)
        raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 9.")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", interrupted)
    with pytest.raises(RunError, match="a loader worker ended unexpectedly"):
        read(Images(deadly=True))


def test_a_worker_says_nothing_when_another_ones_death_interrupts_the_taking_of_its_tensor(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    own, answer = os.getpid(), connection.answer_challenge

    def interrupted(taken: connection.Connection, key: bytes) -> None:
        if os.getpid() != own:
            return answer(taken, key)
        taken.close()
        time.sleep(0.3)  # in which the worker notices
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(connection, "answer_challenge", interrupted)
    with pytest.raises(RunError, match="a loader worker ended unexpectedly"):
        read(Images(deadly=False))
    assert capfd.readouterr().err == ""


class Reporting(Images):
    """Images whose reading reports an error as the threads of multiprocessing do."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sys.excepthook(ValueError, ValueError("a bug"), None)
        return super().__getitem__(index)


def test_other_errors_in_the_threads_of_a_worker_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert read(Reporting(deadly=False)) == [0, 1, 2, 3]
    assert "a bug" in capfd.readouterr().err


@pytest.mark.slow
def test_a_worker_whose_process_is_killed_before_it_has_begun_ends_too() -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED], env=environment(), start_new_session=True)
    assert process.wait(60) == -9
    time.sleep(1)
    assert survivors(process.pid) == []


def test_other_torch_errors_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Too many open files")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", broken)
    with pytest.raises(RuntimeError, match="Too many open files"):
        read(Images(deadly=False))


@dataclass
class Faulty(Dataset[Any]):
    """A single image, which cannot be read."""

    error: SuperLoraError

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise self.error


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "error",
    [
        UsageError("two\nlines", where="a.png", hint="another: file"),
        MismatchError("of another kind"),
        LongUsageError(["one", "two"], where="table.csv"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_reading_is_raised_as_it_was(error: SuperLoraError, workers: int) -> None:
    with pytest.raises(type(error)) as caught:
        list(evaluation_batches(Faulty(error), 1, workers=workers, pin=False))
    assert caught.value.as_dict() == error.as_dict()


def test_workers_read_in_order() -> None:
    assert read(Images(deadly=False)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("count", "asked", "expected"), [(3, 0, 0), (4, 0, 3), (4, 2, 3), (4, 5, 5)])
def test_many_pictures_are_read_by_a_few_workers_unasked(
    count: int, asked: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MANY", 4)
    monkeypatch.setattr(batches.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(batches, "_read", lambda images, **how: how["num_workers"])
    pictures = FolderImages([("a.png", 0)] * count)
    assert evaluation_batches(pictures, 2, workers=asked, pin=False) == expected
    assert evaluation_batches(Subset(pictures, range(count)), 2, workers=asked, pin=False) == expected
    in_memory = TensorDataset(torch.zeros(count, 1), torch.zeros(count))
    assert evaluation_batches(in_memory, 2, workers=asked, pin=False) == asked


def test_an_evaluation_shows_a_bar_on_a_terminal(cli: Cli, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conftest.io", SimpleNamespace(StringIO=Terminal))
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    assert "test images" in cli("eval", adapter, "eval.batch_size=100").err
