"""What one sees of a training: a progress bar on a terminal, a line now and then elsewhere, nothing with --quiet."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from superlora_cli.showing import Showing
from superlora_cli.training.meter import Figures


class Display(Showing):
    """Step, loss, learning rate, images/s, share of time waiting for data, peak memory and time left, on stderr."""

    def __init__(self, console: Console, *, steps: int, start: int, quiet: bool) -> None:
        self.steps, self.quiet = steps, quiet
        progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=quiet or not console.is_terminal,
        )
        super().__init__(progress)
        self.task = progress.add_task("train", total=steps, completed=start, figures="")

    def step(self, step: int, figures: Figures, *, lr: float) -> None:
        """New figures after `step`, learning rate `lr`."""
        words = f"loss {figures.loss:.4f}  lr {lr:.2e}  {figures.images_per_second:.0f} images/s"
        words += f"  data {figures.data_wait:.0%}  {figures.memory / 2**30:.1f} GiB"
        self.progress.update(self.task, completed=step, figures=words)
        if self.due(last=step == self.steps):
            self.say(f"step {step}/{self.steps}  {words}")

    def say(self, line: str) -> None:
        """A line above the bar."""
        if not self.quiet:
            self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
            sys.stderr.flush()
