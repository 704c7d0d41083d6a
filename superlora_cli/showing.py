"""What shows progress: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.progress import Progress

BETWEEN_LINES = 15  # seconds, where there is no terminal


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
