"""What one sees of files being written: a bar on a terminal, a line now and then elsewhere, on stderr."""

from __future__ import annotations

import time
from threading import Lock
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

BETWEEN_LINES = 15  # seconds, where there is no terminal


class WritingDisplay:
    """Progress over `total` bytes of `what`; `advance` is what `Draft` calls."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self.console, self.what, self.total = console, what, total
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(what, total=total)
        self.written, self.spoken = 0, time.monotonic()
        self.lock = Lock()

    def __enter__(self) -> WritingDisplay:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def advance(self, count: int) -> None:
        """`count` bytes more have been written, by any thread."""
        with self.lock:
            self.written += count
        self.progress.update(self.task, completed=self.written)
        if not self.console.is_terminal and time.monotonic() - self.spoken > BETWEEN_LINES:
            self.spoken = time.monotonic()
            self.console.print(f"{self.what}: {self.written / max(self.total, 1):.0%}", markup=False)
