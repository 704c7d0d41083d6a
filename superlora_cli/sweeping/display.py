"""Progress of a sweep: a live table on a terminal, a line per run elsewhere, nothing with --quiet."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from superlora_cli.progress import LiveTable
from superlora_cli.reporting.metrics import METRICS, Metric
from superlora_cli.sweeping.folder import Row, SweepFolder
from superlora_cli.sweeping.plan import Run
from superlora_cli.sweeping.work import Event

TAIL = 2000  # bytes at the end of metrics.jsonl that include its last line


class Board(LiveTable):
    """Shows the state of a sweep as it changes.

    Args:
        runs: all runs of the sweep.
        rows: the results of those that ended before.
        workers: number of runs at a time.
    """

    def __init__(
        self,
        folder: SweepFolder,
        runs: Sequence[Run],
        rows: Sequence[Row],
        console: Console,
        *,
        workers: int,
        quiet: bool,
    ) -> None:
        super().__init__(console, quiet=quiet)
        self.folder, self.runs, self.rows, self.workers = folder, runs, list(rows), workers
        self.speeds: list[float] = []  # seconds per step of the runs that ended in this command
        self.steps = {run.id: run.recipe.train.steps for run in runs}  # None if it counts epochs

    def title(self) -> str:
        done = sum(row["status"] == "completed" for row in self.rows)
        return f"{self.folder.plan.name}: {len(self.runs)} runs, {done} of them done, {self.workers} at a time"

    def tell(self, event: Event, rows: Sequence[Row]) -> None:
        """Report that a job began or ended; `rows` are the results so far."""
        name, outcome = event.job.id, event.outcome
        if outcome is None:
            self.began[name] = time.monotonic()
            return
        self.rows = list(rows)
        seconds = time.monotonic() - self.began.pop(name, time.monotonic())
        if outcome.status == "completed" and (steps := self.steps[name]):
            self.speeds.append(seconds / steps)
        row = next((row for row in rows if row["id"] == name), None)
        figure = _figure(row) if row else ""
        words = [
            f"{len(rows)}/{len(self.runs)}",
            f"{seconds:.0f} s",
            name,
            self.folder.told(outcome.error or "") or figure or outcome.status,
        ]
        self.say("  ".join(words))

    def table(self) -> Group:
        """Counts, time left, the best run so far, and the active runs."""
        failed = sum(row["status"] == "failed" for row in self.rows)
        running = list(self.began.items())
        left = len(self.runs) - len({row["id"] for row in self.rows} | set(self.began))
        counts = f"done {len(self.rows) - failed}  failed {failed}  running {len(running)}  waiting {max(0, left)}"
        lines = [counts + (f"  about {in_words(self.left())} left" if self.speeds else "")]
        if best := best_of(self.rows):
            lines.append(f"best {_figure(best)}  {best['id']}")
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, since in running[: max(1, self.console.height - 6)]:
            step = last_step(self.folder.path / "runs" / name)
            total = self.steps[name]
            shown = f"{step:,}" if total is None else f"{step:,}/{total:,}"
            table.add_row(Text(name), shown, f"{time.monotonic() - since:.0f} s")
        return Group(*(Text(line) for line in lines), table)

    def left(self) -> float:
        """Seconds until all runs with a known number of steps are done, estimated from the runs that ended so far."""
        ended = {row["id"] for row in self.rows}
        steps = sum(count for name, count in self.steps.items() if count and name not in ended)
        steps -= sum(last_step(self.folder.path / "runs" / name) for name in list(self.began) if self.steps[name])
        return steps * sum(self.speeds) / len(self.speeds) / self.workers if self.speeds else 0.0


def best_of(rows: Sequence[Row]) -> Row | None:
    """The completed run with the best metric, selected without the test split if possible."""
    for name, metric in _judging().items():
        having = [row for row in rows if row["status"] == "completed" and _number(row["metrics"].get(name))]
        if having:
            best = max if metric.higher else min
            return best(having, key=lambda row: float(row["metrics"][name]))
    return None


def last_step(run: Path) -> int:
    """The last step in a run's metrics.jsonl; 0 if there is none."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(-min(TAIL, file.seek(0, 2)), 2)
            lines = file.read().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return 0


def in_words(seconds: float) -> str:
    """A duration in words.

    >>> in_words(50), in_words(800), in_words(30_000)
    ('50 s', '13 min', '8.3 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def measure_of(row: Row) -> str | None:
    """The metric by which a run is judged; None if it has none."""
    return next((name for name in _judging() if _number(row["metrics"].get(name))), None)


def _judging() -> dict[str, Metric]:
    """The metrics that may select the best run, by their names there; the first that the rows have does."""
    return {"fid": METRICS["fid"]} | {f"val_{name}": one for name, one in METRICS.items() if not one.of_images}


def _figure(row: Row) -> str:
    name = measure_of(row)
    return f"{name} {row['metrics'][name]:.4g}" if name else ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float)
