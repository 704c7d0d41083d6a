"""What one sees of sampling: a bar with the time left on a terminal, a line now and then elsewhere, on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

BETWEEN_LINES = 15  # seconds, where there is no terminal


class SamplingDisplay:
    """Progress over all steps of all images."""

    def __init__(self, console: Console, *, images: int, steps: int) -> None:
        self.console, self.images, self.steps = console, images, steps
        self.progress = Progress(
            TextColumn("sampling {task.fields[done]}/" + f"{images} images, {steps} steps each"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("sample", total=images * steps, done=0)
        self.taken, self.spoken = 0, time.monotonic()

    def __enter__(self) -> SamplingDisplay:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def step(self, images: int) -> None:
        """`images` have been taken one step further."""
        self.taken += images
        self.progress.update(self.task, completed=self.taken, done=self.taken // self.steps)
        if not self.console.is_terminal and time.monotonic() - self.spoken > BETWEEN_LINES:
            self.spoken = time.monotonic()
            share = self.taken / (self.images * self.steps)
            self.console.print(f"sampling {self.images} images, {self.steps} steps each: {share:.0%}", markup=False)
