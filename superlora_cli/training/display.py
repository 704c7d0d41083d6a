"""What one sees of a training: a progress bar on a terminal, a line now and then elsewhere, nothing with --quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Display:
    """Step, loss, learning rate, images/s and time left, on stderr."""

    def __init__(self, console: Console, *, steps: int, start: int, quiet: bool) -> None:
        self.console, self.steps, self.quiet = console, steps, quiet
        self.live = not quiet and console.is_terminal
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  lr {task.fields[lr]}  {task.fields[rate]} images/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
        )
        self.task: TaskID = self.progress.add_task("train", total=steps, completed=start, loss="–", lr="–", rate="–")
        self.spoken = time.monotonic()

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def step(self, step: int, *, loss: float, rate: float, lr: float) -> None:
        """New figures: mean loss since the last ones, images per second, learning rate."""
        self.progress.update(self.task, completed=step, loss=f"{loss:.4f}", lr=f"{lr:.2e}", rate=f"{rate:.0f}")
        if not self.live and not self.quiet and (time.monotonic() - self.spoken > 15 or step == self.steps):
            self.spoken = time.monotonic()
            self.say(f"step {step}/{self.steps}  loss {loss:.4f}  lr {lr:.2e}  {rate:.0f} images/s")

    def say(self, line: str) -> None:
        """A line above the bar."""
        if not self.quiet:
            self.progress.console.print(line, highlight=False, markup=False)
            sys.stderr.flush()
