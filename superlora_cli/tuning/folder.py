"""The folder of a search.

DIR/tune.yaml                       what is searched: recipe, budget and space; another search is refused
DIR/study.log                       Optuna's journal of the trials
DIR/runs/trial007/                  a run, as `superlora train` writes it; stopped ones without a result
DIR/runs/trial007-seed1/            the same setting with another seed
DIR/results.csv, results.jsonl      every finished run, as in a sweep's folder
DIR/best.yaml                       the recipe that was found
DIR/tune.json, front.svg            what was found
DIR/workers.log                     output of the workers' libraries
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from superlora_cli.errors import UsageError
from superlora_cli.files import locked, system_errors, write_atomic
from superlora_cli.recipe.overrides import Override
from superlora_cli.recipe.yaml import dump_yaml
from superlora_cli.sweeping.folder import Row, SweepFolder
from superlora_cli.sweeping.plan import Run, Settings, SweepPlan, run_of
from superlora_cli.sweeping.work import WAIT, Job


@dataclass(frozen=True)
class Subject:
    """What every trial starts from: a recipe file, overrides of it, and the knobs of its adapter that stay."""

    file: Path
    overrides: Sequence[Override]
    kept: Mapping[str, Any]

    def settings(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a trial, its adapter with the knobs that stay."""
        return {**chosen, "adapter": {**self.kept, **chosen["adapter"]}} if "adapter" in chosen else dict(chosen)

    def run(self, name: str, settings: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> Run:
        """The run `name` with `settings` on top, and those of its `own` that do not describe a setting."""
        common = [(".".join(each.path), each.value, each.text) for each in self.overrides]
        fixed = [(key, value, key) for key, value in (own or {}).items()]
        chosen = [(key, value, key) for key, value in self.settings(settings).items()]
        return replace(run_of(self.file, Settings([*common, *fixed], (), chosen)), id=name)


class TuneFolder:
    """The folder of a search; `opened` holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal, self.best, self.found = path / "study.log", path / "best.yaml", path / "tune.json"
        self.front = path / "front.svg"

    @contextmanager
    def opened(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Create the folder, or check that it holds the same search; no other process can open it meanwhile.

        Args:
            about: what is searched, as plain data.

        Raises:
            UsageError: it holds something else, or cannot be written.
        """
        text, file = dump_yaml(about), self.path / "tune.yaml"
        hint = "choose another --out"
        with system_errors(self.path):
            if self.path.exists() and any(self.path.iterdir()) and not file.is_file():
                raise UsageError("the folder is not empty and holds no search", where=str(self.path), hint=hint)
            if file.is_file() and file.read_text(encoding="utf-8") != text:
                raise UsageError("holds a search for something else", where=str(file), hint=hint)
            (self.path / "runs").mkdir(parents=True, exist_ok=True)
            write_atomic(file, text, force=True)
        with locked(self.path / ".lock", "search"):
            yield

    def of(self, run: Run) -> Path:
        """The folder of a run."""
        return self.path / "runs" / run.id

    def job(self, run: Run, until: int | None = None) -> Job:
        """A run as a job for a worker, which waits for one of a search that was killed just now, and still saves."""
        return replace(self._results([run]).job(run), until=until, wait=WAIT)

    def row(self, run: Run) -> Row | None:
        """The result of a finished run; None if it is not finished."""
        return self._results([run]).row(run)

    def write_results(self, runs: Sequence[Run]) -> list[Row]:
        """Write results.csv and results.jsonl for those of the runs that are finished."""
        return self._results(runs).write_results()

    def _results(self, runs: Sequence[Run]) -> SweepFolder:
        return SweepFolder(self.path, SweepPlan(self.path / "tune.yaml", "", tuple(runs), None, False))
