"""Files written whole or not at all: a temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from superlora_cli.errors import RunError, UsageError


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                "the disk is full", where=str(path), hint="free some space; nothing was overwritten"
            ) from None
        if error.errno in (errno.EIO, errno.EFBIG):
            raise RunError(f"cannot write: {error.strerror}", where=str(path), hint="nothing was overwritten") from None
        hint = "choose a folder you may write to"
        raise UsageError(f"cannot write: {error.strerror}", where=str(path), hint=hint) from None


def write_atomic(path: Path, content: bytes | str, *, force: bool = True) -> None:
    """Write a file so that at any moment either the old or the new one is there, whole.

    Raises:
        RunError: the disk is full. UsageError: the folder cannot be written, or as `replacing` without `force`.
    """
    with replacing(path, force=force) as temporary, system_errors(path):
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, force: bool = True) -> Iterator[Path]:
    """An empty temporary file beside `path`, to be written; then it takes the place of `path`, in one moment.

    Whatever is raised inside leaves the old file as it was, and no temporary one.

    Raises:
        RunError: the disk is full. UsageError: the folder cannot be written; or, without `force`, somebody else has
            written `path` meanwhile.
    """
    with system_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    try:
        yield Path(name)
        with system_errors(path):
            sync(Path(name))
            os.chmod(name, 0o666 & ~_umask())
            if force or not _put(Path(name), path):
                os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(path: Path, *, force: bool = True) -> Iterator[Path]:
    """An empty temporary folder beside `path`, to be filled with files; then it takes the place of `path`.

    Whatever is raised inside leaves the old folder as it was, and no temporary one. Where the system cannot exchange
    two folders in one moment, for that moment there is none of the name.

    Raises:
        RunError: the disk is full. UsageError: the folder cannot be written; or, without `force`, somebody else has
            filled it meanwhile.
    """
    with system_errors(path):
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield folder
        with system_errors(path):
            for file in folder.iterdir():
                sync(file)
            os.chmod(folder, 0o777 & ~_umask())
            if path.exists() and force:
                _exchange(folder, path)
            else:
                try:
                    os.rename(folder, path)  # also to an empty folder's place
                except OSError as error:
                    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                        raise _exists(path) from None
                    raise
    finally:  # what is left under the temporary name: an unfinished folder, or the one that was replaced
        shutil.rmtree(folder, ignore_errors=True)


def _put(temporary: Path, path: Path) -> bool:
    """Give a file its name if nobody else has taken it. False where the file system has no way to do so at once."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError:
        return False
    temporary.unlink()
    return True


def _exists(path: Path) -> UsageError:
    kind = "folder" if path.is_dir() else "file"
    return UsageError(f"the {kind} exists", where=str(path), hint="--force overwrites it")


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> None:
    """Two folders change names, by Linux' renameat2 where there is one."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call and call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return
    aside = one.with_name(f"{one.name}.old")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def write_folder(path: Path, files: Mapping[str, bytes], *, force: bool = True) -> None:
    """Write a folder of files so that it appears whole; in one that is there, each file is replaced and others stay.

    Raises:
        RunError: the disk is full. UsageError: the folder cannot be written, or as `replacing_folder` without `force`.
    """
    if force and path.is_dir() and any(path.iterdir()):
        for name, content in files.items():
            write_atomic(path / name, content)
        return
    with replacing_folder(path, force=force) as folder:
        for name, content in files.items():
            write_atomic(folder / name, content)


def check_output(path: Path, *, force: bool) -> None:
    """Refuse early an output that is there already, or whose folder is not; an empty folder is free.

    Raises:
        UsageError: says what `--force` would do.
    """
    if not path.parent.is_dir():
        raise UsageError("no such folder", where=str(path.parent), hint="make it first")
    if path.exists() and not force and not (path.is_dir() and not any(path.iterdir())):
        raise _exists(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """`write_atomic` for a JSON document with sorted keys."""
    write_atomic(path, json_text(content))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def json_text(content: Any) -> str:
    """A JSON document for people: indented, with sorted keys."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
