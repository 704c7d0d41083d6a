"""A merge killed at any moment leaves either no output or a whole one."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.conftest import Cli, contents, environment
from tests.weights.checkpoints import METADATA, adapter, checkpoint, save_shards, thirds

# Slowed down so that moments between writing and renaming are hit; "ready" comes when the writing begins.
MERGE = """
import sys, time
from superlora_cli.weights.writing import Draft
from superlora_cli.cli.app import main
plain = Draft.write
def slow(draft, *about):
    plain(draft, *about)
    time.sleep(0.01)
Draft.write = slow
import superlora_cli.tasks.merge
print("ready", flush=True)
sys.argv = ["superlora", "merge", "adapter.safetensors", *sys.argv[1:]]
main()
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
    moments, seen = random.Random(0), []
    for round_ in range(6):
        if force:
            _put(Path(out), old)
        command = [sys.executable, "-c", MERGE, "--base", base, "--out", out, "--no-verify", *["--force"][: int(force)]]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 1.2) if round_ else 30 / 1000)
        process.kill()
        process.communicate()
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
