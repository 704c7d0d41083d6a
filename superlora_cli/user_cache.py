"""What a user's later runs need again, in $XDG_CACHE_HOME/superlora or ~/.cache/superlora. It may be deleted."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path


def user_cache() -> Path | None:
    """The folder, which may not exist yet; None if there is no place for it."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "superlora"
    except RuntimeError:  # no home
        return None


def mark_used(file: Path) -> None:
    """Note that a file was used, for `make_room`."""
    with suppress(OSError):
        os.utime(file)


def make_room(folder: Path, room: float, *, spared: float = 0) -> None:
    """Remove the least recently used files below a folder, as far as possible, until the others fit.

    Args:
        room: bytes.
        spared: files that were used in the last so many seconds stay, even if they do not fit.
    """
    used, now = 0, time.time()
    with suppress(OSError):
        files = [(path.stat(), path) for path in folder.rglob("*.safetensors")]
        for state, path in sorted(files, key=lambda file: file[0].st_mtime, reverse=True):
            used += state.st_size
            if used > room and now - state.st_mtime >= spared:
                path.unlink(missing_ok=True)
