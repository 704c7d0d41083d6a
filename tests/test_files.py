"""A file is there whole, old or new; equal content is equal bytes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from superlora_cli.errors import RunError, SuperLoraError, UsageError
from superlora_cli.files import write_atomic, write_folder, write_json


def fail_with(number: int) -> Any:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_written_file_has_the_given_content_and_no_temporary_remains(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, "old")
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.ENOSPC, RunError, "disk is full"),
        (errno.EDQUOT, RunError, "disk is full"),
        (errno.EROFS, UsageError, "cannot write"),
    ],
)
def test_the_old_file_stays_whole_where_writing_fails(
    call: str, number: int, kind: type[SuperLoraError], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    write_atomic(target, "old")
    monkeypatch.setattr(os, call, fail_with(number))
    with pytest.raises(kind, match=says) as caught:
        write_atomic(target, "new")
    assert str(target) in str(caught.value)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "file"
    write_atomic(target, "old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_written_concurrently_is_not_overwritten_without_force(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    write_atomic(file, "first", force=False)
    write_folder(folder, {"a": b"first"}, force=False)
    with pytest.raises(UsageError, match=r"the file exists \(--force overwrites it\)"):
        write_atomic(file, "second", force=False)
    with pytest.raises(UsageError, match=r"the folder exists \(--force overwrites it\)"):
        write_folder(folder, {"a": b"second"}, force=False)
    assert file.read_text() == (folder / "a").read_text() == "first"
    write_atomic(file, "second")
    write_folder(folder, {"a": b"second"})
    assert file.read_text() == (folder / "a").read_text() == "second"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_without_hard_links_a_new_file_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*names: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    write_atomic(tmp_path / "file", "first", force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_json_is_written_with_sorted_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": {"d": 2, "c": 3}})
    write_json(tmp_path / "b.json", {"a": {"c": 3, "d": 2}, "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1, "a": {"c": 3, "d": 2}}
