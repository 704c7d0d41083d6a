"""A sweep's folder: its runs and their results.

DIR/sweep.yaml                      the sweep file at the last start
DIR/runs/<id>/                      a run, as `superlora train` writes it; with measure.json if the sweep measures
DIR/results.csv, results.jsonl      every finished run, once, in the order of the sweep
DIR/workers.log                     output of the workers' libraries
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superlora_cli.errors import UsageError
from superlora_cli.files import locked, read_json, system_errors, write_atomic, write_json
from superlora_cli.sweeping.plan import Run, SweepPlan
from superlora_cli.sweeping.schema import Measure
from superlora_cli.sweeping.work import Job

COST = ("seconds", "images_per_second", "peak_memory")  # not in results.csv, because they vary
Row = dict[str, Any]


class SweepFolder:
    """The folder of a sweep's runs and results."""

    def __init__(self, path: Path, plan: SweepPlan) -> None:
        self.path, self.plan = path, plan
        self.csv, self.jsonl = path / "results.csv", path / "results.jsonl"

    def prepare(self) -> None:
        """Create the folder, and copy the sweep file to it.

        Raises:
            UsageError: it holds something else, or cannot be written.
        """
        with system_errors(self.path):
            if self.path.exists() and any(self.path.iterdir()) and not (self.path / "sweep.yaml").is_file():
                hint = "choose another --out"
                raise UsageError("the folder is not empty and holds no sweep", where=str(self.path), hint=hint)
            (self.path / "runs").mkdir(parents=True, exist_ok=True)
        write_atomic(self.path / "sweep.yaml", self.plan.text, force=True)

    def of(self, run: Run) -> Path:
        """The folder of a run."""
        return self.path / "runs" / run.id

    def told(self, error: str) -> str:
        """An error without the sweep's path, so that results do not depend on it."""
        return error.replace(f"{self.path.absolute()}/", "")

    def job(self, run: Run) -> Job:
        """A run as a job for a worker."""
        measure = wanted_measure(self.plan.measure, run)
        threads = run.recipe.train.threads or 1
        return Job(run.id, str(self.of(run).absolute()), run.recipe.to_dict(), measure, threads)

    def note_failure(self, run: Run, error: str) -> None:
        """Record that a run failed, in case it could not do so itself."""
        row, folder = self.row(run), self.of(run)
        if row is not None and row["status"] == "failed":
            return
        about = read_json(folder / "run.json")
        folder.mkdir(parents=True, exist_ok=True)
        if about.get("status") == "completed":  # it was trained, but failed while being measured
            write_json(folder / "measure.json", {"wanted": wanted_measure(self.plan.measure, run), "error": error})
        else:
            write_json(folder / "run.json", {**about, "status": "failed", "error": error})

    def row(self, run: Run) -> Row | None:
        """The result of a finished run; None if it is not finished."""
        folder = self.of(run)
        about = read_json(folder / "run.json")
        status, error, measured = about.get("status"), about.get("error"), None
        if status == "completed":
            kind = "model" if run.recipe.adapter is None else "adapter"
            if not (folder / f"{kind}.safetensors").is_file():
                return None
            if wanted := wanted_measure(self.plan.measure, run):
                found = read_json(folder / "measure.json")
                if found.get("wanted") != wanted:
                    return None
                measured, error = found.get("metrics"), found.get("error")
        if status not in ("completed", "failed"):
            return None
        return {
            "id": run.id,
            "recipe": run.name,
            "seed": run.recipe.seed,
            "overrides": dict(run.overrides),
            "status": "failed" if error else "completed",
            "params": dict(run.params),
            **({"found_rate": about["found_rate"]} if "found_rate" in about else {}),
            "steps": about.get("steps"),
            "bytes": about.get("bytes"),
            "metrics": {**(about.get("metrics") or {}), **(measured or {})},
            "error": None if error is None else self.told(str(error)),
            "run": f"runs/{run.id}",
            **{key: about.get(key) for key in COST},
            **{key: value for key, value in about.items() if key.endswith("_per_second")},
        }

    def rows(self) -> list[Row]:
        """The results of all finished runs, in the order of the sweep."""
        return [row for run in self.plan.possible if (row := self.row(run)) is not None]

    def write_results(self) -> list[Row]:
        """Write results.csv and results.jsonl from the run folders; returns their rows."""
        with locked(self.path / ".results.lock"):  # the last one to write has seen all results
            rows = self.rows()
            write_atomic(self.jsonl, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), force=True)
            write_atomic(self.csv, as_csv(rows), force=True)
        return rows


def wanted_measure(measure: Measure | None, run: Run) -> dict[str, Any] | None:
    """The `measure` section for one run, with its seed filled in."""
    return None if measure is None else {"seed": run.recipe.seed, **measure.model_dump()}


def as_csv(rows: Sequence[Row]) -> str:
    """One line per run, one column per overridden key and metric: the same bytes for the same results."""
    keys = dict.fromkeys(key for row in rows for key in row["overrides"])
    metrics = dict.fromkeys(name for row in rows for name in row["metrics"])
    found = ["found_rate"] if any("found_rate" in row for row in rows) else []
    columns = ["id", "recipe", "seed", *keys, "status", "parameters", "head", *found, "steps", "bytes", *metrics,
               "error"]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        plain = {key: row.get(key) for key in ("id", "recipe", "seed", "status", *found, "steps", "bytes", "error")}
        params = row["params"]
        adapted = params.get("adapter") or params.get("head") != 0  # without an adapter there is no separate head
        trained = params.get("adapter") if adapted else params.get("base")
        writer.writerow({**row["overrides"], **row["metrics"], **plain, "parameters": trained, "head": params["head"]})
    return text.getvalue()
