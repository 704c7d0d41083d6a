"""Which image files can be read completely: checked once before training, and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import PIL

from superlora_cli.data.images import why_unreadable
from superlora_cli.errors import SuperLoraError
from superlora_cli.files import write_atomic
from superlora_cli.progress import with_bar
from superlora_cli.user_cache import user_cache

DECODER = f"Pillow {PIL.__version__}"  # results of other versions do not count: they may read other formats
AT_ONCE = 512  # files given to the threads at a time; finished ones are remembered even if the rest is interrupted


@dataclass(frozen=True)
class Checked:
    """A file that was checked.

    Attributes:
        size: in bytes.
        mtime_ns: time of its last change.
        cause: why it cannot be read; None if it can.
        content: SHA-256 of its bytes; "" if it cannot be read.
    """

    size: int
    mtime_ns: int
    cause: str | None
    content: str = ""


FIELDS = fields(Checked)  # results with fewer fields, of an older version, do not count


def scan(root: Path, names: Sequence[str]) -> dict[str, Checked]:
    """Decode every file completely, except those decoded before whose size and time have not changed.

    Completely, because a truncated JPEG has an intact header and would end training in the first epoch.

    Args:
        root: a folder.
        names: files in it, relative to it.

    Returns:
        The results by name, in the order of `names`.
    """
    memory, found = _memory(root), {name: _changed(os.path.join(root, name)) for name in names}
    for name, was in _recall(memory).items():
        if name in found and (found[name].size, found[name].mtime_ns) == (was.size, was.mtime_ns):
            found[name] = was
    new = [name for name, file in found.items() if file.cause == UNKNOWN]
    try:
        for name, (cause, content) in _decoded(root, new):
            found[name] = Checked(found[name].size, found[name].mtime_ns, cause, content)
    finally:
        if new:
            _remember(memory, {name: file for name, file in found.items() if file.cause != UNKNOWN})
    return found


def known_broken(root: Path) -> set[str]:
    """The files in a folder, relative to it, that an earlier `scan` could not read and that have not changed since."""
    was = {name: file for name, file in _recall(_memory(root)).items() if file.cause is not None}
    now = {name: _changed(os.path.join(root, name)) for name in was}
    return {name for name, file in was.items() if (now[name].size, now[name].mtime_ns) == (file.size, file.mtime_ns)}


UNKNOWN = "not checked"


def _changed(path: str) -> Checked:
    try:
        stat = os.stat(path)
    except OSError as error:  # e.g. a dangling link
        return Checked(0, 0, error.strerror)
    return Checked(stat.st_size, stat.st_mtime_ns, UNKNOWN)


def _look(path: Path) -> tuple[str | None, str]:
    """Why a file cannot be read, or None; and the SHA-256 of its bytes if it can."""
    cause = why_unreadable(path)
    if cause is not None:
        return cause, ""
    with path.open("rb") as file:
        return None, hashlib.file_digest(file, "sha256").hexdigest()


def _decoded(root: Path, names: Sequence[str]) -> Iterator[tuple[str, tuple[str | None, str]]]:
    """The result for each file."""
    parts = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for part in with_bar(parts, "checking the images", total=len(names), size=len):
            yield from zip(part, threads.map(_look, [root / name for name in part]), strict=True)


def _memory(root: Path) -> Path | None:
    """The file that remembers the results for a folder, for this user; None if there is no place for it."""
    caches = user_cache()
    try:
        return caches and caches / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]}.json"
    except (OSError, RuntimeError):  # a link to itself
        return None


def _recall(memory: Path | None) -> dict[str, Checked]:
    if memory is None:
        return {}
    try:
        stored = json.loads(memory.read_bytes())
        return {name: Checked(*file) for name, file in stored[DECODER].items() if len(file) == len(FIELDS)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, damaged, or of another Pillow
        return {}


def _remember(memory: Path | None, found: Mapping[str, Checked]) -> None:
    """Store the results if possible: without them the next run is merely slower."""
    if memory is None:
        return
    with contextlib.suppress(OSError, SuperLoraError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(memory, json.dumps({DECODER: {name: astuple(file) for name, file in found.items()}}), force=True)
