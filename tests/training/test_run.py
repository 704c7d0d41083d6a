"""A run folder is held by the process that opened it, and by none that it starts."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from superlora_cli.errors import FolderInUseError
from superlora_cli.training.run import RunFolder


def test_opening_many_runs_leaves_nothing_behind_in_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "register_at_fork", lambda **_: pytest.fail("callbacks can never be removed"))
    for name in "ab":
        with RunFolder(tmp_path / name).opened():
            pass


def test_a_child_lets_go_of_the_lock(tmp_path: Path) -> None:
    run, (reading, writing) = RunFolder(tmp_path / "run"), os.pipe()
    with run.opened():
        child = os.fork()
        if child == 0:
            os.read(reading, 1)  # until the parent has closed the folder, and opened it again
            os._exit(0)
    try:
        with run.opened():
            pass
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_two_cannot_hold_a_folder_that_a_third_leaves_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, plain = RunFolder(tmp_path / "run").opened(), fcntl.flock

    def flock(lock: int, how: int) -> None:
        first.__exit__(None, None, None)  # between the opening of the file and its locking
        monkeypatch.undo()
        plain(lock, how)

    first.__enter__()
    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        RunFolder(tmp_path / "run").opened(),
        pytest.raises(FolderInUseError, match="another run is writing to it"),
        RunFolder(tmp_path / "run").opened(),
    ):
        pass


def test_adapters_of_steps_with_pictures_outlive_their_checkpoints(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        if step == 1:
            run.show(step, b"a picture")
        run.save(step, {}, {"adapter.safetensors": b"an adapter"}, keep=1, protected=())
    left = sorted(path.relative_to(run.checkpoints).as_posix() for path in run.checkpoints.rglob("*.*"))
    assert left == ["step-000001/adapter.safetensors", "step-000003/adapter.safetensors", "step-000003/state.pt"]
    assert run.latest_checkpoint() == run.checkpoints / "step-000003"
