"""Merging where the disk is full, or copies nothing by itself."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, contents
from tests.weights.checkpoints import prepare


@pytest.mark.parametrize("call", ["pwrite", "copy_file_range", "fsync"])
@pytest.mark.parametrize("base", ["base.safetensors", "big"])
def test_a_full_disk_is_reported_and_leaves_only_the_base(
    call: str, base: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare()
    before, plain, left = contents(Path()), getattr(os, call), iter(range(2))

    def fail(*words: Any) -> Any:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(*words)

    if call == "fsync":
        left = iter(())
    monkeypatch.setattr(os, call, fail)
    out = "out.safetensors" if base.endswith("s") else "merged"
    result = cli("merge", "adapter.safetensors", "--base", base, "--out", out)
    assert result.code == 1
    assert f"{out}: the disk is full (free some space; nothing was overwritten)" in result.message
    assert contents(Path()) == before
    assert not Path(out).exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 136 KiB, more than half of which the base takes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount") or os.system(f"mount -t tmpfs -o size=136k none {folder} 2>/dev/null"):
        pytest.skip("mounting a small disk takes root")
    yield folder
    os.system(f"umount -l {folder}")


@pytest.mark.parametrize("base", ["base.safetensors", "big"])
def test_a_disk_that_is_really_full(base: str, small_disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare()
    os.rename("big", "kept") if base != "big" else None
    for name in (base, "adapter.safetensors"):
        (shutil.copytree if Path(name).is_dir() else shutil.copy)(name, small_disk / name)
    monkeypatch.chdir(small_disk)
    before = contents(Path())
    assert sum(map(len, before.values())) > 136 * 1024 / 2
    result = cli("merge", "adapter.safetensors", "--base", base, "--out", f"new-{base}")
    assert result.code == 1
    assert "the disk is full" in result.message
    assert contents(Path()) == before


def test_copying_falls_back_where_the_system_call_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare()
    words = ("merge", "adapter.safetensors", "--base", "big", "--out")
    assert cli(*words, "one").code == 0

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert cli(*words, "two").code == 0
    monkeypatch.delattr(os, "copy_file_range")
    assert cli(*words, "three").code == 0
    assert contents(Path("one")) == contents(Path("two")) == contents(Path("three"))
