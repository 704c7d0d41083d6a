"""Progress of training: a bar on a terminal, a line now and then elsewhere, nothing with --quiet."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from superlora_cli.progress import LiveDisplay
from superlora_cli.training.meter import Figures

BAR = 12  # fewest columns
DROPPED = (4, 3, 1, 2)  # figures to drop if space is short, in this order: memory, data, learning rate, images/s


class Display(LiveDisplay):
    """Step, loss, learning rate, images/s, share of time waiting for data, peak memory and time left, on stderr.

    On a narrow terminal the least important ones are left out.
    """

    def __init__(self, console: Console, *, steps: int, start: int, quiet: bool) -> None:
        self.steps, self.quiet = steps, quiet
        progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=quiet or not console.is_terminal,
        )
        super().__init__(progress)
        self.task = progress.add_task("train", total=steps, completed=start, figures="")

    def step(self, step: int, figures: Figures, *, lr: float) -> None:
        """Show new figures after `step`, with learning rate `lr`."""
        words = [
            f"loss {figures.loss:.4f}",
            f"lr {lr:.2e}",
            f"{figures.throughput:.0f} {figures.unit}/s",
            f"data {figures.data_wait:.0%}",
            f"{figures.memory / 2**30:.1f} GiB",
        ]
        self.progress.update(self.task, completed=step, figures="  ".join(self._fitting(words)))
        if self.due(last=step == self.steps):
            self.say("  ".join([f"step {step}/{self.steps}", *words]))

    def _fitting(self, words: list[str]) -> list[str]:
        """The figures that leave room for step, time and a bar."""
        room = self.progress.console.width - len(f"step {self.steps}/{self.steps}  0:00:00  ") - BAR
        shown = list(words)
        for index in DROPPED:
            if len("  ".join(shown)) > room:
                shown.remove(words[index])
        return shown

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
            sys.stderr.flush()
