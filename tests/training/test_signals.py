"""Signals that reach a whole group of processes, at any moment, leave no process behind and lose nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.cli.test_train import DROPOUT, uninterrupted
from tests.conftest import QUICK, Cli, Result
from tests.data.test_shards import write_shard
from tests.data.test_splits import FOLDER
from tests.forking.commands import Commands, Done
from tests.training.launching import ended, spoken, start, wait_for

pytestmark = pytest.mark.slow

LONG = ("train.steps=400", "eval.every=400", "train.checkpoint_every=400", "train.batch_size=16", "data.workers=2")


def one_line(result: Result | Done) -> str:
    (line,) = spoken(result)
    assert "Traceback" not in result.err + result.out
    return line


def survivors(group: int) -> list[psutil.Process]:
    """Living processes of a group, two seconds later at the latest."""
    found: list[psutil.Process] = []
    for _ in range(20):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        if not found:
            break
        time.sleep(0.1)
    return found


def began(folder: str) -> bool:
    """Whether the run in `folder` is training."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((Path(folder) / "run.json").read_text())["status"] == "running"
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_with_loader_workers_saves_and_loses_nothing(
    number: signal.Signals, commands: Commands, cli: Cli, tmp_path: Path
) -> None:
    words = ("train.steps=60", "eval.every=60", "train.checkpoint_every=10", "data.workers=2", *DROPOUT)
    with uninterrupted(tmp_path / "run", *words):
        process = commands.start("train", *QUICK, *words, "--out", "run", cwd=tmp_path)
        wait_for(Path("run/checkpoints/step-000010/COMPLETE").exists, process)
        process.kill(number, group=True)
        stopped = process.done
        assert stopped.code == 130, stopped.err
        line = one_line(stopped)
        assert "stopped at step" in line
        assert "saved" in line
        assert 10 <= int(line.partition("stopped at step ")[2].partition(",")[0]) < 60
        assert survivors(process.pid) == []
        assert cli("train", *QUICK, *words, "--resume", "run").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_torch_is_loading_leaves_no_folder(number: signal.Signals, cli: Cli) -> None:
    process = start("train", *QUICK, "--out", "run", start_new_session=True)
    wait_for(Path("run/.lock").exists, process)
    os.killpg(process.pid, number)
    result = ended(process)
    assert result.code == 130, result.err
    assert one_line(result) == "superlora: interrupted"
    assert not Path("run").exists()


def test_a_loader_worker_that_is_killed_ends_the_run_with_one_line(
    commands: Commands, cli: Cli, tmp_path: Path
) -> None:
    process = commands.start("train", *QUICK, *LONG, "--out", "run", cwd=tmp_path)
    children = psutil.Process(process.pid).children
    wait_for(lambda: began("run") and len(children()) == 2, process)
    time.sleep(0.5)
    children()[0].kill()
    result = process.done
    assert result.code in (1, 2)
    assert "worker" in one_line(result).lower()
    assert json.loads(Path("run/run.json").read_text())["status"] == "failed"
    assert survivors(process.pid) == []


def test_an_error_in_a_loader_worker_ends_the_command_and_its_workers(
    commands: Commands, cli: Cli, tmp_path: Path
) -> None:
    shard = Path("pets/train/000000.tar")  # unlike a folder's, the images of shards are first decoded in training
    write_shard(shard, [(number, number % 2) for number in range(12)])
    shard.write_bytes(shard.read_bytes().replace(b"IDAT", b"DATA"))
    words = ("data.name=wds/pets", "data.num_classes=2", *FOLDER, "data.workers=2", "--out", "run")
    process = commands.start("train", "quickstart", *words, cwd=tmp_path)
    result = process.done
    assert result.code == 2
    assert "cannot be read as an image" in one_line(result)
    assert survivors(process.pid) == []


def test_a_loss_that_is_not_finite_ends_the_command_and_its_workers(
    commands: Commands, cli: Cli, tmp_path: Path
) -> None:
    words = ("train.optimizer.lr=1e30", "train.scheduler={name: constant}", "data.workers=2")
    result = commands.start("train", *QUICK, *words, "--out", "run", cwd=tmp_path).done
    assert result.code == 1
    assert "is NaN or Inf at step" in one_line(result)


def test_a_command_that_is_killed_leaves_no_loader_workers(commands: Commands, cli: Cli, tmp_path: Path) -> None:
    process = commands.start("train", *QUICK, *LONG, "--out", "run", cwd=tmp_path)
    wait_for(lambda: began("run") and len(psutil.Process(process.pid).children()) == 2, process)
    process.kill(signal.SIGKILL)
    assert process.done.code == -signal.SIGKILL
    deadline = time.monotonic() + 15  # torch's workers look for their parent every 5 seconds
    while survivors(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert survivors(process.pid) == []
    commands.right("train", *QUICK, "--out", "run", "--force", "--quiet", cwd=tmp_path)  # the lock is gone, too
