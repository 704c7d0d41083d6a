"""Progress of writing files: a bar on a terminal, a line now and then elsewhere, on stderr."""

from __future__ import annotations

from threading import Lock

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from superlora_cli.progress import LiveDisplay


class WritingDisplay(LiveDisplay):
    """Progress over `total` bytes of `what`; `Draft` calls `advance`."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self.console, self.what, self.total = console, what, total
        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        super().__init__(progress)
        self.task = progress.add_task(what, total=total)
        self.written = 0
        self.lock = Lock()

    def advance(self, count: int) -> None:
        """Add `count` bytes, written by any thread."""
        with self.lock:
            self.written += count
        self.progress.update(self.task, completed=self.written)
        if self.due():
            self.console.print(f"{self.what}: {self.written / max(self.total, 1):.0%}", markup=False)
