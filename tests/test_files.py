"""A file is there whole, old or new; equal content is equal bytes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from superlora_cli.errors import RunError, SuperLoraError, UsageError
from superlora_cli.files import write_atomic, write_folder, write_json
from superlora_cli.models.embedded import ASSETS
from tests.conftest import Cli
from tests.data.conftest import write_folder as write_folder_of_images


def fail_with(number: int) -> Any:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_written_file_has_the_given_content_and_no_temporary_remains(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, "old", force=True)
    write_atomic(target, b"new", force=True)
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
    write_atomic(target, "old", force=True)
    monkeypatch.setattr(os, call, fail_with(number))
    with pytest.raises(kind, match=says) as caught:
        write_atomic(target, "new", force=True)
    assert str(target) in str(caught.value)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "file"
    write_atomic(target, "old", force=True)
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(target, "new", force=True)
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
    write_atomic(file, "second", force=True)
    write_folder(folder, {"a": b"second"}, force=True)
    assert file.read_text() == (folder / "a").read_text() == "second"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


COMMANDS = {
    "compress": ("compress", "run", "--out", "out.safetensors"),
    "extract": ("extract", "--base", "glyphs_vit", "--tuned", "tuned.safetensors", "--method", "lora", "--rank", "1",
                "--steps", "1", "--out", "out.safetensors"),
    "generate": ("generate", "sums_llama", "--prompt", "1+1=", "--max-tokens", "1", "--out", "out.json"),
    "predict": ("eval", "run", "--predict", "images", "--out", "out.csv"),
    "assign": ("eval", "--assign", "table.csv", "--adapters", ".", "--out", "out.csv"),
    "preview": ("preview", "quickstart", "--count", "1", "--out", "out.png"),
    "init": ("init", "--data", "images", "--model", "glyphs_vit", "--out", "out.yaml"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_overwrites_what_another_has_written_meanwhile(
    command: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder_of_images(Path("images"))
    shutil.copytree(trained, "run")
    tuned = {name: value * 2 for name, value in load_file(ASSETS / "glyphs_vit.safetensors").items()}
    save_file(tuned, "tuned.safetensors")
    Path("table.csv").write_text("file,adapter\nimages/a/0.png,run\n")
    *_, out = words = COMMANDS[command]
    plain = tempfile.mkstemp

    def mkstemp(**how: Any) -> tuple[int, str]:
        if how["prefix"] == f".{out}.":
            Path(out).write_text("another's")
        return plain(**how)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    result = cli(*words)
    assert (result.code, f"{out}: the file exists" in result.err) == (2, True), result.err
    assert Path(out).read_text() == "another's"
    assert cli(*words, "--force").code == 0
    assert Path(out).read_bytes() != b"another's"


def test_without_hard_links_a_new_file_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*names: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    write_atomic(tmp_path / "file", "first", force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", "text", force=True)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_json_is_written_with_sorted_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": {"d": 2, "c": 3}})
    write_json(tmp_path / "b.json", {"a": {"c": 3, "d": 2}, "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1, "a": {"c": 3, "d": 2}}
