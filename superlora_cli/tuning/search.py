"""Conduct a search: trials in generations, the best settings with further seeds, and what was found."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from superlora_cli.errors import InterruptedRunError
from superlora_cli.reporting.history import History
from superlora_cli.reporting.metrics import METRICS
from superlora_cli.sweeping.conduct import events_of, usual_workers
from superlora_cli.sweeping.folder import Row
from superlora_cli.sweeping.plan import Run
from superlora_cli.sweeping.work import Job, Outcome
from superlora_cli.training.run import RunFolder
from superlora_cli.tuning.display import Board
from superlora_cli.tuning.folder import Subject, TuneFolder
from superlora_cli.tuning.result import Finalist, found
from superlora_cli.tuning.space import SearchSpace
from superlora_cli.tuning.study import Study

GENERATION = 8  # trials that are chosen and compared together
FINALISTS = 3  # settings that are trained with further seeds, besides the first trial's


@dataclass(frozen=True)
class Limits:
    """When a search ends: after a number of trials, or some minutes of this command, with the last runs included."""

    trials: int | None
    minutes: float | None
    seeds: int


class Search:
    """A search in a folder.

    Args:
        measure: the validation metric that is compared, e.g. `val_accuracy`.
    """

    def __init__(
        self,
        folder: TuneFolder,
        subject: Subject,
        space: SearchSpace,
        limits: Limits,
        *,
        measure: str,
        rung: int | None,
    ) -> None:
        self.folder, self.subject, self.space, self.limits = folder, subject, space, limits
        self.measure, self.rung = measure, rung
        self.higher = METRICS.named(measure.removeprefix("val_")).higher
        self.seed = subject.run("seed", {}).recipe.seed
        self.study = Study(folder.journal, space, higher=self.higher, rung=rung, seed=self.seed)
        self.errors: dict[str, str] = {}
        self.began = time.monotonic()
        self.spent: list[float] = []  # seconds of each generation of this command
        self.finals: list[list[Run]] = []  # of each finalist, a run a seed

    def conduct(
        self, console: Console, *, workers: int | None = None, ray: str | None = None, quiet: bool = False
    ) -> dict[str, Any]:
        """Do what is not done yet, and write what was found.

        Returns:
            what `superlora tune --json` prints.

        Raises:
            InterruptedRunError: after a signal, when the active runs are saved. RunError: every trial failed.
        """
        waves = self._waves()
        jobs = deque(next(waves, ()))
        count = min(workers or usual_workers(jobs), GENERATION) if jobs else 1
        self.workers = count
        pending = len(jobs)
        with Board(self, console, workers=count, quiet=quiet) as board:
            try:
                with closing(events_of(jobs, count, workers, ray, self.folder.path)) as events:
                    for event in events:
                        board.tell(event)
                        if event.outcome is None:
                            continue
                        if event.outcome.error:
                            self.errors[event.job.id] = event.outcome.error
                        pending -= 1
                        while not pending and (wave := next(waves, None)) is not None:
                            jobs.extend(wave)
                            pending = len(jobs)
            except KeyboardInterrupt:
                done = sum(trial.state.is_finished() for trial in self.study.trials)
                message = f"interrupted, {done} trials done"
                raise InterruptedRunError(
                    message, where=str(self.folder.path), hint="the same command continues it"
                ) from None
        return self._found()

    def run(self, number: int, seed: int | None = None) -> Run:
        """A trial as a run; with another seed it is a run of its own."""
        settings = self.space.settings(self._values(number))
        if seed is None or seed == self.seed:
            return self.subject.run(f"trial{number:03d}", settings)
        return self.subject.run(f"trial{number:03d}-seed{seed}", settings, {"seed": seed})

    def value(self, row: Row | None) -> float | None:
        """The metric of a finished run; None if it failed or has none."""
        value = row["metrics"].get(self.measure) if row is not None and row["status"] == "completed" else None
        return float(value) if isinstance(value, int | float) else None

    def told(self, name: str, outcome: Outcome) -> str:
        """How a run ended, in words: its error, or its form and the metric so far."""
        number = int(name.removeprefix("trial").partition("-")[0])
        form, row = self._values(number)["form"], self.folder.row(self._by_name(name))
        value = self.value(row)
        if outcome.error:
            return f"{form}  {outcome.error}"
        return f"{form}  {outcome.status}" if value is None else f"{form}  {self.measure} {value:.4g}"

    def counts(self) -> str:
        """How many trials there are, by state."""
        states = [trial.state.name for trial in self.study.trials]
        ended = f"finished {states.count('COMPLETE')}  stopped {states.count('PRUNED')}  failed {states.count('FAIL')}"
        return f"trials {len(states)}{'' if self.limits.trials is None else f'/{self.limits.trials}'}  {ended}"

    def leader(self) -> str:
        """The best trial so far; "" if none is finished."""
        best = self.study.finished()
        if not best:
            return ""
        return f"best {self.measure} {best[0].value:.4g}: trial {best[0].number}, {best[0].params['form']}"

    def left(self) -> float:
        """Seconds until the search is over, as far as that is known; 0 if not."""
        if self.limits.minutes is not None:
            return max(0.0, self.limits.minutes * 60 - (time.monotonic() - self.began))
        if self.limits.trials is None or not self.spent:
            return 0.0
        generations = math.ceil((self.limits.trials - len(self.study.trials)) / GENERATION)
        return statistics.mean(self.spent) * max(0, generations)

    def _by_name(self, name: str) -> Run:
        number, _, seed = name.removeprefix("trial").partition("-seed")
        return self.run(int(number), int(seed) if seed else None)

    def _values(self, number: int) -> dict[str, Any]:
        return self.study.trials[number].params

    def _waves(self) -> Iterator[list[Job]]:
        """Jobs that can run at the same time; the next ones depend on how they end."""
        while numbers := self._next_generation():
            began = time.monotonic()
            self.study.propose(numbers)
            if self.rung:
                yield [self._job(trial.number, self.rung) for trial in self.study.active()]
                self._judge(self.rung)
            yield [self._job(trial.number) for trial in self.study.active()]
            for trial in self.study.active():
                self.study.finish(trial.number, self.value(self.folder.row(self.run(trial.number))))
            self._write_results()
            self.spent.append(time.monotonic() - began)
        seeds = range(self.seed, self.seed + self.limits.seeds)
        self.finals = [[self.run(number, seed) for seed in seeds] for number in self._finalists()]
        yield [self.folder.job(run) for runs in self.finals for run in runs if self.folder.row(run) is None]
        self._write_results()

    def _next_generation(self) -> range:
        """The numbers of the generation to work on; empty when the search is over."""
        trials = self.study.trials
        most = self.limits.trials or 10**9
        unfinished = self.study.active()
        if not unfinished and (len(trials) >= most or self._time_is_up()):
            return range(0)
        start = (unfinished[0].number if unfinished else len(trials)) // GENERATION * GENERATION
        return range(start, min(start + GENERATION, most))

    def _time_is_up(self) -> bool:
        """Whether another generation and the last runs would take too long."""
        if self.limits.minutes is None or not self.spent:
            return False
        rows = [self.folder.row(self.run(trial.number)) for trial in self.study.finished()]
        one = statistics.mean([row["seconds"] for row in rows if row and row["seconds"]] or [0.0])
        last = (FINALISTS + 1) * (self.limits.seeds - 1) * one / self.workers
        left = self.limits.minutes * 60 - (time.monotonic() - self.began)
        return left < statistics.mean(self.spent[-2:]) + last

    def _job(self, number: int, until: int | None = None) -> Job:
        return self.folder.job(self.run(number), until)

    def _judge(self, rung: int) -> None:
        """Stop those of the active trials that are not among the best at the rung; those that failed are over."""
        for trial in self.study.active():
            run = self.run(trial.number)
            if run.id in self.errors:
                self.study.finish(trial.number, None)
                continue
            place = RunFolder(self.folder.of(run))
            value = History.read(place.metrics).at(rung).get(self.measure.removeprefix("val_"))
            if self.study.stops(trial.number, value):
                place.describe({**place.about(), "status": "stopped", "error": f"not among the best at step {rung}"})

    def _finalists(self) -> list[int]:
        """The best settings, and the first trial's if it is finished."""
        best = [trial.number for trial in self.study.finished()]
        return [*best[:FINALISTS], *([0] if 0 in best[FINALISTS:] else [])]

    def _runs(self) -> list[Run]:
        trials = [self.run(trial.number) for trial in self.study.trials]
        return [*trials, *(run for runs in self.finals for run in runs if run.recipe.seed != self.seed)]

    def _found(self) -> dict[str, Any]:
        finalists = []
        for runs in self.finals:
            rows = [self.folder.row(run) for run in runs]
            values = [self.value(row) for row in rows]
            done = [
                (row, value) for row, value in zip(rows, values, strict=True) if row is not None and value is not None
            ]
            if len(done) == len(runs):
                finalists.append(Finalist(runs, [row for row, _ in done], [value for _, value in done]))
        return found(self, finalists)

    def _write_results(self) -> list[Row]:
        return self.folder.write_results(self._runs())
