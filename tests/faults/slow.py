"""What a child does before its command on a slow disk."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

PAUSE = 0.01  # seconds


def disk() -> None:
    """Files are written in pieces, and every piece, sync and renaming takes its time."""
    from superlora_cli.weights.writing import Draft

    fsync, replace, rename, write = os.fsync, os.replace, os.rename, Draft.write

    def slowly(plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            time.sleep(PAUSE)
            return plain(*args, **kwargs)

        return call

    def write_bytes(path: Path, content: bytes) -> int:
        with io.open(path, "wb", buffering=0) as file:  # noqa: UP020
            half = len(content) // 2
            file.write(content[:half])
            time.sleep(PAUSE)
            return half + file.write(content[half:])

    os.fsync, os.replace, os.rename = slowly(fsync), slowly(replace), slowly(rename)
    Draft.write = slowly(write)  # type: ignore[method-assign]
    Path.write_bytes = write_bytes  # type: ignore[method-assign,assignment]
