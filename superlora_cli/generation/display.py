"""Progress of sampling: a bar with the time left on a terminal, a line now and then elsewhere, on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from superlora_cli.progress import LiveDisplay


class SamplingDisplay(LiveDisplay):
    """Progress over all steps of all images."""

    def __init__(self, console: Console, *, images: int, steps: int) -> None:
        self.console, self.images, self.steps = console, images, steps
        progress = Progress(
            TextColumn("sampling {task.fields[done]}/" + f"{images} images, {steps} steps each"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        super().__init__(progress)
        self.task = progress.add_task("sample", total=images * steps, done=0)
        self.taken = 0

    def step(self, images: int) -> None:
        """One sampling step of `images` is done."""
        self.taken += images
        self.progress.update(self.task, completed=self.taken, done=self.taken // self.steps)
        if self.due():
            share = self.taken / (self.images * self.steps)
            self.console.print(f"sampling {self.images} images, {self.steps} steps each: {share:.0%}", markup=False)
