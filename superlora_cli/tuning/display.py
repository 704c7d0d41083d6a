"""Progress of a search: a live table on a terminal, a line per trial elsewhere, nothing with --quiet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from superlora_cli.progress import LiveTable
from superlora_cli.sweeping.display import in_words, last_step
from superlora_cli.sweeping.work import Event

if TYPE_CHECKING:
    from superlora_cli.tuning.search import Search


class Board(LiveTable):
    """Shows the trials as they run, the best so far, and the time left."""

    def __init__(self, search: Search, console: Console, *, workers: int, quiet: bool) -> None:
        super().__init__(console, quiet=quiet)
        self.search, self.workers = search, workers

    def title(self) -> str:
        forms = len(self.search.space.forms)
        done = sum(trial.state.is_finished() for trial in self.search.study.trials)
        return f"{self.search.space.budget}: {forms} forms, {done} trials done, {self.workers} at a time"

    def tell(self, event: Event) -> None:
        """Report that a job began or ended."""
        name = event.job.id
        if event.outcome is None:
            self.began[name] = time.monotonic()
            return
        seconds = time.monotonic() - self.began.pop(name, time.monotonic())
        words = [name, f"{seconds:.0f} s", self.search.told(name, event.outcome)]
        self.say("  ".join(words))

    def table(self) -> Group:
        """Counts, time left, the best trial so far, and the active runs."""
        lines = [self.search.counts()]
        if left := self.search.left():
            lines[0] += f"  about {in_words(left)} left"
        if best := self.search.leader():
            lines.append(best)
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, since in list(self.began.items())[: max(1, self.console.height - 6)]:
            step = last_step(self.search.folder.path / "runs" / name)
            table.add_row(Text(name), f"step {step:,}", f"{time.monotonic() - since:.0f} s")
        return Group(*(Text(line) for line in lines), table)
