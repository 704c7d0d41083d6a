"""Files written whole or not at all: a temporary name in the same folder, fsync, rename. And locks of folders."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any
from weakref import WeakSet

from superlora_cli.errors import FolderInUseError, RunError, UsageError

LOCKS: WeakSet[TextIOWrapper] = WeakSet()  # that this process has opened


def _let_go() -> None:
    """A child that outlives this process, such as a loader worker, must not hold its locks."""
    for lock in LOCKS:
        lock.close()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's error on writing `path` into one clear line."""
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


def write_atomic(path: Path, content: bytes | str, *, force: bool) -> None:
    """Write a file atomically: at any moment, either the complete old file or the complete new one exists.

    Raises:
        RunError: the disk is full. UsageError: the folder cannot be written, or as `replacing` without `force`.
    """
    with replacing(path, force=force) as temporary, system_errors(path):
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty temporary file in the folder of `path`; on leaving, it replaces `path` atomically.

    If anything is raised inside, the old file stays as it was and the temporary one is removed.

    Raises:
        RunError: the disk is full. UsageError: the folder cannot be written; or, without `force`, another process has
            written `path` in the meantime.
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
def replacing_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`, to be filled with files; on leaving, it replaces `path`.

    If anything is raised inside, the old folder stays as it was and the temporary one is removed. On systems that
    cannot swap two folders atomically, `path` does not exist for a moment.

    Raises:
        RunError: the disk is full. UsageError: the folder cannot be written; or, without `force`, another process has
            filled it in the meantime.
    """
    with system_errors(path):
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield folder
        with system_errors(path):
            for file in folder.rglob("*"):
                sync(file)
            os.chmod(folder, 0o777 & ~_umask())
            if path.exists() and force:
                _exchange(folder, path)
            else:
                try:
                    os.rename(folder, path)  # this also replaces an empty folder
                except OSError as error:
                    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                        raise _exists(path) from None
                    raise
    finally:  # removes an unfinished folder, or the one that was replaced
        shutil.rmtree(folder, ignore_errors=True)


def _put(temporary: Path, path: Path) -> bool:
    """Rename a file unless `path` exists. Returns False if the file system cannot do so atomically."""
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
    """Wait until a file is written to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders, by Linux's renameat2 if available."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call and call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return
    aside = one.with_name(f"{one.name}.old")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def write_folder(path: Path, files: Mapping[str, bytes], *, force: bool) -> None:
    """Write a folder of files atomically; in an existing folder, each file is replaced and all others stay.

    Raises:
        RunError: the disk is full. UsageError: the folder cannot be written, or as `replacing_folder` without `force`.
    """
    if force and path.is_dir() and any(path.iterdir()):
        for name, content in files.items():
            write_atomic(path / name, content, force=True)
        return
    with replacing_folder(path, force=force) as folder:
        for name, content in files.items():
            write_atomic(folder / name, content, force=True)


def check_output(path: Path, *, force: bool, fills: bool = True) -> None:
    """Refuse early an output that exists, or whose folder does not.

    Args:
        fills: whether it may be an empty folder.

    Raises:
        UsageError: as described.
    """
    if not path.parent.is_dir():
        raise UsageError("no such folder", where=str(path.parent), hint="create it first")
    fillable = fills and path.is_dir() and not any(path.iterdir())
    if (path.exists() or path.is_symlink()) and not force and not fillable:
        raise _exists(path)


@contextmanager
def locked(file: Path, other: str | None = None) -> Iterator[None]:
    """Hold the lock `file`, which is made with its folder; the system releases it however the process ends. Its holder
    may remove it.

    Args:
        other: what may hold it, for the error; None: wait for it.

    Raises:
        UsageError: the folder cannot be written. FolderInUseError: another process holds the lock.
    """
    while True:
        with system_errors(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = file.open("a")
        LOCKS.add(lock)
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if other else 0))
            except BlockingIOError:
                hint = "wait for it, or choose another --out"
                raise FolderInUseError(f"another {other} is writing to it", where=str(file.parent), hint=hint) from None
            if _is_still(lock, file):
                yield
                return


def _is_still(lock: TextIOWrapper, file: Path) -> bool:
    """Whether no holder has removed the file since it was opened: then others would lock another one."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """`write_atomic` for a JSON document with sorted keys; an existing file is replaced."""
    write_atomic(path, json_text(content), force=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is none or it cannot be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def json_text(content: Any) -> str:
    """A readable JSON document: indented, with sorted keys."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def canonical(content: Any) -> str:
    """The shortest JSON document, with sorted keys: the same content is always the same text."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
