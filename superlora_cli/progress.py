"""What shows progress: what is being done, or a bar, on a terminal; a line now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

BETWEEN_LINES = 15  # seconds, where there is no terminal


def doing(console: Console, what: str, *, quiet: bool = False) -> AbstractContextManager[Any]:
    """Says on a terminal what is being done, as long as it takes."""
    return nullcontext() if quiet else console.status(Text(what))


class Showing:
    """Shows `progress` as long as it is entered."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.spoken = progress, time.monotonic()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def due(self, *, last: bool = False) -> bool:
        """Whether a line is due, where there is no bar; it is taken to be said then."""
        if not self.progress.disable or not (last or time.monotonic() - self.spoken > BETWEEN_LINES):
            return False
        self.spoken = time.monotonic()
        return True
