"""A merge killed at any moment leaves either no output or a whole one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.conftest import Cli, contents, environment
from tests.weights.checkpoints import METADATA, adapter, checkpoint, save_shards, thirds

# Slowed down, so that moments between writing and renaming are hit too. One process imports everything; for every line
# it reads it starts a child that merges, and says its number.
MERGES = """
import os, sys, time
import superlora_cli.commands.merge
from superlora_cli.cli.app import main
from superlora_cli.weights.writing import Draft
plain = Draft.write
def slow(draft, *about):
    plain(draft, *about)
    time.sleep(0.005)
Draft.write = slow
sys.argv = ["superlora", "merge", "adapter.safetensors", *sys.argv[1:]]
while sys.stdin.readline():
    child = os.fork()
    if not child:
        sys.stdout = open(os.devnull, "w")
        main()
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("base", "out"), [("base.safetensors", "out.safetensors"), ("big", "merged")])
@pytest.mark.parametrize("force", [False, True])
def test_a_merge_killed_at_any_moment_leaves_no_output_or_a_whole_one(
    base: str, out: str, force: bool, cli: Cli, tmp_path: Path
) -> None:
    tensors = checkpoint()
    adapter(tensors).save(Path("adapter.safetensors"))
    save_file(tensors, "base.safetensors", METADATA)
    save_shards(Path("big"), thirds(tensors), METADATA)
    words = ("merge", "adapter.safetensors", "--base", base, "--no-verify")
    assert cli(*words, "--out", "r.safetensors" if out != "merged" else "right").code == 0
    right = _bytes(Path("r.safetensors" if out != "merged" else "right"))
    sources = _bytes(Path(base))
    old = b"old" if out != "merged" else {"model.safetensors.index.json": b"{}"}
    command = [sys.executable, "-c", MERGES, "--base", base, "--out", out, "--no-verify", *["--force"][: int(force)]]
    moments, seen = random.Random(0), []
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(10):
            if force:
                _put(Path(out), old)
            process.stdin.write("next\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            time.sleep(moments.uniform(0, 1))
            with contextlib.suppress(ProcessLookupError):  # it was quicker
                os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "ended\n"
            found = _bytes(Path(out)) if Path(out).exists() else None
            assert found in ([right, old] if force else [right, None])
            seen.append(found == right)
            assert _bytes(Path(base)) == sources
            _remove(Path(out))
        process.stdin.close()
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
