"""A merge killed at any moment leaves either no output or a whole one."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from superlora_cli.weights.writing import Draft
from tests.conftest import Cli, contents
from tests.forking.commands import Commands
from tests.weights.checkpoints import METADATA, adapter, checkpoint, save_shards, thirds


def slowly() -> None:
    """In a command: moments between writing and renaming are hit, too."""
    plain = Draft.write

    def write(draft: Draft, *about: Any) -> None:
        plain(draft, *about)
        time.sleep(0.005)

    Draft.write = write  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(("base", "out"), [("base.safetensors", "out.safetensors"), ("big", "merged")])
@pytest.mark.parametrize("force", [False, True])
def test_a_merge_killed_at_any_moment_leaves_no_output_or_a_whole_one(
    base: str, out: str, force: bool, commands: Commands, cli: Cli, tmp_path: Path
) -> None:
    tensors = checkpoint()
    adapter(tensors).save(Path("adapter.safetensors"), force=True)
    save_file(tensors, "base.safetensors", METADATA)
    save_shards(Path("big"), thirds(tensors), METADATA)
    words = ("merge", "adapter.safetensors", "--base", base, "--no-verify")
    slow = (f"{__name__}:slowly",)
    began = time.monotonic()
    commands.right(*words, "--out", out, cwd=tmp_path, setup=slow)
    seconds = time.monotonic() - began
    right = _bytes(Path(out))
    _remove(Path(out))
    sources = _bytes(Path(base))
    old = b"old" if out != "merged" else {"model.safetensors.index.json": b"{}"}
    command = (*words, "--out", out, *["--force"][: int(force)])
    moments, seen = random.Random(0), []
    for _ in range(10):
        if force:
            _put(Path(out), old)
        running = commands.start(*command, cwd=tmp_path, setup=slow)
        time.sleep(moments.uniform(0, seconds))
        running.kill(signal.SIGKILL)
        assert running.done.code in (-signal.SIGKILL, 0), running.done.err
        found = _bytes(Path(out)) if Path(out).exists() else None
        assert found in ([right, old] if force else [right, None])
        seen.append(found == right)
        assert _bytes(Path(base)) == sources
        _remove(Path(out))
    assert not all(seen)  # some were killed on the way


def _bytes(path: Path) -> object:
    return contents(path) if path.is_dir() else path.read_bytes()


def _put(path: Path, old: object) -> None:
    if isinstance(old, bytes):
        path.write_bytes(old)
        return
    assert isinstance(old, dict)
    path.mkdir()
    for name, content in old.items():
        (path / name).write_bytes(content)


def _remove(path: Path) -> None:
    for file in path.iterdir() if path.is_dir() else []:
        file.unlink()
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
