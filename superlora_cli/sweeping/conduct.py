"""Execute the remaining runs of a sweep: here, on a cluster, or only one of them."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import psutil
from rich.console import Console

from superlora_cli.errors import InterruptedRunError, UsageError
from superlora_cli.launch import launched
from superlora_cli.sweeping.display import Board, best_of, measure_of
from superlora_cli.sweeping.folder import Row, SweepFolder
from superlora_cli.sweeping.local import each
from superlora_cli.sweeping.plan import Run
from superlora_cli.sweeping.work import WORK, Event, Job

MEMORY = 2 * 2**30  # bytes assumed per worker if their number is not given


def conduct(
    folder: SweepFolder,
    console: Console,
    *,
    workers: int | None = None,
    ray: str | None = None,
    index: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Do the runs that are not finished, updating the results; a run that fails does not stop the others.

    Args:
        workers: runs at a time; default: one per GPU, else one per CPU core, as far as memory allows.
        ray: address of a Ray cluster to run on.
        index: the only run to do, counted from 0 in the order of the sweep.

    Returns:
        status (completed, failed or incomplete), sweep, out, runs, completed, failed, left, impossible, best (id, run,
        metrics, and chosen_by, the name of one of them; None if no run has a metric to choose by), results (the file),
        errors (id and error of each run that did not complete).

    Raises:
        UsageError: a run is impossible, the index is out of range, the folder holds something else, or there is no such
            cluster. InterruptedRunError: after a signal, when the active runs are saved.
    """
    runs = folder.plan.checked()
    if launched() > 1:
        raise UsageError(f"launched as {launched()} processes", where="superlora sweep",
                         hint="start it as a single process, with --workers or --ray")  # fmt: skip
    if index is not None:
        if not 0 <= index < len(runs):
            raise UsageError(f"the sweep has {len(runs)} runs", where=f"--index {index}", hint=f"0 to {len(runs) - 1}")
        runs = runs[index : index + 1]
    folder.prepare()
    begun = _Session(folder, runs)
    jobs = deque(folder.job(run) for run in runs if not begun.done(run))
    if index is not None:
        begun.alone(jobs, None if quiet else console)
    elif jobs:
        count = min(workers or usual_workers(jobs), len(jobs))
        board = Board(folder, runs, begun.rows, console, workers=count, quiet=quiet)
        with board, closing(events_of(jobs, count, workers, ray, folder.path)) as events:
            try:
                for event in events:
                    begun.note(event)
                    board.tell(event, begun.rows)
            except KeyboardInterrupt:
                events.close()  # saves the active runs
                begun.interrupted()
    return begun.summary()


class _Session:
    """The results of the runs so far: those done before, and those done by this command.

    Attributes:
        rows: the results of both, in the order of the sweep.
        errors: errors of the runs that did not complete in this command, by id.
    """

    def __init__(self, folder: SweepFolder, runs: Sequence[Run]) -> None:
        self.folder, self.runs = folder, {run.id: run for run in runs}
        self.errors: dict[str, str] = {}
        self.failed: set[str] = set()
        self.rows: list[Row] = []
        self._look()

    def _look(self) -> None:
        """Write the results; earlier failures do not count, because they are tried again."""
        rows = self.folder.write_results()
        self.rows = [row for row in rows if row["id"] in self.runs and (_completed(row) or row["id"] in self.failed)]

    def done(self, run: Run) -> bool:
        """Whether a run is finished."""
        return any(row["id"] == run.id and _completed(row) for row in self.rows)

    def note(self, event: Event) -> None:
        """Record that a job began or ended."""
        name, outcome = event.job.id, event.outcome
        if outcome is None or name not in self.runs:
            return
        if outcome.error is not None:
            self.errors[name] = self.folder.told(outcome.error)
        if outcome.status == "failed":
            self.failed.add(name)
            self.folder.note_failure(self.runs[name], outcome.error or "failed")
        self._look()

    def alone(self, jobs: Iterable[Job], console: Console | None) -> None:
        """Execute a single job, of a job array, in this process."""
        module, _, name = WORK.partition(":")
        for job in jobs:
            outcome = getattr(importlib.import_module(module), name)(job, console)
            self.note(Event(job, outcome))
            if outcome.status == "interrupted":
                raise InterruptedRunError(outcome.error, hint="the same command continues it")

    def interrupted(self) -> NoReturn:
        """Report how far the sweep got."""
        self._look()
        message = f"interrupted, {sum(map(_completed, self.rows))} of {len(self.runs)} runs done"
        raise InterruptedRunError(message, where=str(self.folder.path), hint="the same command continues it")

    def summary(self) -> dict[str, Any]:
        """What `conduct` returns."""
        completed = sum(map(_completed, self.rows))
        left = len(self.runs) - completed - len(self.failed)
        return {
            "status": "failed" if self.failed else "incomplete" if left else "completed",
            "sweep": str(self.folder.plan.file),
            "out": str(self.folder.path),
            "runs": len(self.runs),
            "completed": completed,
            "failed": len(self.failed),
            "left": left,
            "impossible": len(self.folder.plan.impossible),
            "best": self.best(),
            "results": str(self.folder.csv),
            "errors": [{"id": name, "error": self.errors[name]} for name in self.runs if name in self.errors],
        }

    def best(self) -> dict[str, Any] | None:
        """The best run, and the metric it was chosen by."""
        row = best_of(self.rows)
        if row is None:
            return None
        run, chosen_by = str(self.folder.path / row["run"]), measure_of(row)
        return {"id": row["id"], "run": run, "chosen_by": chosen_by, "metrics": row["metrics"]}


def _completed(row: Row) -> bool:
    return bool(row["status"] == "completed")


def events_of(
    jobs: deque[Job], count: int, asked: int | None, ray: str | None, folder: Path
) -> Generator[Event, None, None]:
    """Execute jobs here, `count` at a time, or on a Ray cluster, as many as `asked` for or it has room for."""
    if ray is not None:
        from superlora_cli.sweeping.cluster import each_on_cluster

        return each_on_cluster(jobs, WORK, ray, limit=asked)
    return each(jobs, WORK, workers=count, devices=_devices(), log=folder / "workers.log")


def _devices() -> list[str]:
    """The available GPUs, as named in CUDA_VISIBLE_DEVICES; −1 hides those after it."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return list(takewhile(lambda device: device != "-1", filter(None, map(str.strip, named.split(",")))))
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def usual_workers(jobs: Collection[Job]) -> int:
    """The number of runs at a time: one per GPU, else one per CPU core, as far as memory allows."""
    if devices := _devices():
        return min(len(devices), len(jobs))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    room = int(psutil.virtual_memory().available // MEMORY)
    return max(1, min(cores // max(job.threads for job in jobs), room, len(jobs)))
