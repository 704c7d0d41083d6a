"""Do one run of a sweep: from scratch, from its newest checkpoint, or only the measuring if training is done."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from superlora_cli.commands.train import train_run
from superlora_cli.errors import (
    CannotResumeError,
    FolderInUseError,
    InterruptedRunError,
    PausedRunError,
    RunError,
    SuperLoraError,
    UsageError,
)
from superlora_cli.files import read_json, write_json
from superlora_cli.opening.results import resolve_result
from superlora_cli.progress import hushed
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.schema import Recipe
from superlora_cli.sweeping.work import Job, Outcome
from superlora_cli.training.checkpoints import step_of
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder

STEPS = 20  # enough to estimate the time of one


def carry_out(job: Job, console: Console | None = None) -> Outcome:
    """Train and measure whatever is not done yet in the job's folder.

    Failures are written to the folder and reported in the outcome; nothing is raised.

    Args:
        console: where to show progress; None: nowhere.
    """
    run, quiet = RunFolder(Path(job.folder)), console is None
    console = console or Console(file=io.StringIO())
    deadline = time.monotonic() + job.wait
    try:
        recipe = recipe_from_dict(dict(job.recipe), job.id)
        while True:
            try:
                with run.opened(), hushed(quiet):
                    if not _trained(run):
                        _train(recipe, run, console, until=job.until, quiet=quiet)
                    if job.measure is not None:
                        _measure(job, run, console)
                return Outcome("completed")
            except FolderInUseError as error:
                if time.monotonic() > deadline:
                    return Outcome("busy", str(error))
                time.sleep(1)
    except PausedRunError:
        return Outcome("paused")
    except (InterruptedRunError, KeyboardInterrupt) as error:
        return Outcome("interrupted", str(error) or "interrupted")
    except Exception as error:
        return Outcome("failed", _one_line(error))


def _trained(run: RunFolder) -> bool:
    try:
        return run.about().get("status") == "completed" and resolve_result(run.path).is_file()
    except UsageError:
        return False


def _train(recipe: Recipe, run: RunFolder, console: Console, *, until: int | None, quiet: bool) -> None:
    """Train from the newest usable checkpoint, or from the start if there is none.

    Raises:
        PausedRunError: the step `until` is reached, now or before.
    """
    checkpoint, damaged = run.intact_checkpoint() if (run.path / "recipe.yaml").is_file() else (None, [])
    if until is not None and checkpoint is not None and step_of(checkpoint) >= until:
        raise PausedRunError(f"is at step {until} already", where=str(run.path))
    how: dict[str, Any] = {"until": until, "quiet": quiet}
    try:
        try:
            train_run(recipe, run, console, join(recipe.train), resume=checkpoint, told=damaged, **how)
        except CannotResumeError as error:
            told = [*damaged, f"started over: {error}"]
            train_run(recipe, run, console, join(recipe.train), resume=None, told=told, **how)
    except InterruptedRunError:
        raise
    except Exception as error:
        run.describe({"recipe": recipe.to_dict(), **run.about(), "status": "failed", "error": _one_line(error)})
        raise


def _measure(job: Job, run: RunFolder, console: Console) -> None:
    """Measure the images that the run generates, unless that was done with the same settings."""
    place = run.path / "measure.json"
    found = read_json(place)
    if found.get("wanted") == job.measure and "error" not in found:
        return
    from superlora_cli.commands.measure import measure_run

    settings: dict[str, Any] = {**(job.measure or {})}
    weights, against = settings.pop("weights", None), settings.pop("against")
    try:
        measured = measure_run(str(run.path), against, console, weights=Path(weights) if weights else None, **settings)
    except InterruptedRunError:
        raise
    except Exception as error:
        write_json(place, {"wanted": job.measure, "error": _one_line(error)})
        raise
    write_json(place, {"wanted": job.measure, **measured})


def _one_line(error: Exception) -> str:
    shown = error if isinstance(error, SuperLoraError) else RunError(f"{type(error).__name__}: {error}")
    return " ".join(str(shown).split())


def seconds_per_step(recipe: Recipe) -> float:
    """Time of one training step of a recipe on this machine, estimated from a few steps."""
    few = recipe.to_dict()
    few["train"] |= {"steps": STEPS, "epochs": None, "patience": None, "checkpoint_every": STEPS, "checkpoint_at": []}
    few["train"]["optimizer"] |= {"lr": 0.0}  # no rate has to be found
    few["eval"] |= {"every": STEPS}
    short, quiet = recipe_from_dict(few, "sweep"), Console(file=io.StringIO())
    with tempfile.TemporaryDirectory(prefix="superlora-") as folder, RunFolder(Path(folder) / "run").opened() as run:
        found: float = train_run(short, run, quiet, join(short.train), quiet=True)["seconds_per_step"]
    return found
