"""What a resumed run takes from its folder, and what may have changed in its recipe since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from superlora_cli.errors import CannotResumeError, UsageError
from superlora_cli.opening.build import adapter_config
from superlora_cli.opening.results import from_here
from superlora_cli.recipe.load import load_recipe
from superlora_cli.recipe.overrides import flat
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import TASKS
from superlora_cli.tasks.reading import other_data, settled
from superlora_cli.tasks.work import Work
from superlora_cli.training.loop import Progress
from superlora_cli.training.processes import Processes
from superlora_cli.training.run import RunFolder

# How and where a run is computed, of any task. What data a path means is told by their fingerprint.
FREE = {
    "adapter.execution", "data.download", "data.name", "data.root", "data.workers", "eval.batch_size", "output.dir",
    "output.trackers", "train.checkpoint_at", "train.checkpoint_every", "train.compile", "train.device",
    "train.gradient_checkpointing", "train.keep", "train.log_every", "train.profile", "train.shard_base",
    "train.threads",
}  # fmt: skip
OWN = "resume with its own recipe, or give --out another folder"


def checkpoint_to_resume(run: RunFolder, console: Console) -> Path:
    """The newest intact checkpoint of an existing run; reports newer ones that are damaged.

    Raises:
        UsageError: the folder or an intact checkpoint in it is missing.
    """
    if not run.path.is_dir():
        raise UsageError(
            "no such run folder", where=str(run.path), hint="--resume auto starts a new run if there is none"
        )
    found, damaged = run.intact_checkpoint()
    if found is None:
        hint = damaged[0] if damaged else "set train.checkpoint_every, or start over with --force"
        raise UsageError("holds no intact checkpoint", where=str(run.path), hint=hint)
    for line in damaged:
        run.log(line)
        console.print(line, markup=False, soft_wrap=True)
    return found


def as_started(recipe: Recipe, run: RunFolder) -> Recipe:
    """The recipe of a resumed run with what was settled when it started: how images are split, a rate found, and where
    relative paths start.

    Raises:
        CannotResumeError: a rate was to be found, and the run folder does not say which one was.
    """
    before, recipe = _recorded(run), from_here(recipe, run.path)
    if recipe.train.optimizer.finds:
        found = (before or recipe).train.optimizer
        if found.finds:
            hint = "train.optimizer.lr=NUMBER, or start over with --force"
            raise CannotResumeError("does not say the rate that the run found", where=str(_file(run)), hint=hint)
        recipe = recipe.model_copy(update={"train": recipe.train.at_rate(found.rate)})
    return settled(recipe, before.data.split if before else None)


def differences(run: RunFolder, task: Work, processes: Processes, at: Progress) -> list[str]:
    """A line for every difference between a resumed training and what the run folder records.

    Raises:
        CannotResumeError: the adapter is another one, so that the numbers trained so far would make another ΔW; or no
            step is left to train, and a key says something else of what was trained.
    """
    before, recipe = _recorded(run), task.recipe
    changed = _changes(_keys(before), _keys(recipe)) if before else {}
    now, kept = processes.describe(), run.about().get("environment", {})
    moved = _changes({key: kept.get(key, value) for key, value in now.items()}, now)
    changed_data = run.about().get("data", task.splits.fingerprint) != task.splits.fingerprint

    free = FREE | {f"{recipe.task}.{key}" for key in TASKS[recipe.task].free}
    trained = [line for key, line in changed.items() if key not in free]
    trained += ["other data"] if changed_data else []
    adapted = [line for key, line in changed.items() if key.startswith("adapter.") and key not in free]
    where = str(run.path)
    if at.is_over(recipe.train) and trained:
        more = "train.steps" if at.step == recipe.train.length else "train.patience"
        hint = OWN if adapted else f"more {more} to train it further, or --out with another folder"
        message = f"the run is complete, with another recipe: {', '.join(trained)}"
        raise CannotResumeError(message, where=where, hint=hint)
    if adapted:
        raise CannotResumeError(f"was trained with another adapter: {', '.join(adapted)}", where=where, hint=OWN)
    lines = [f"resuming with a changed recipe: {line}" for line in (*changed.values(), *moved.values())]
    return lines + ([f"resuming on changed data: {other_data(TASKS[recipe.task].elements)}"] if changed_data else [])


def _file(run: RunFolder) -> Path:
    return run.path / "recipe.yaml"


def _recorded(run: RunFolder) -> Recipe | None:
    """The recipe that the run records, None if there is none; runs from before `data.split` were shuffled."""
    if not _file(run).is_file():
        return None
    return settled(from_here(load_recipe(_file(run)), run.path), "shuffle")


def _keys(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe by dotted key, with every knob of the adapter: unset ones say what they mean."""
    plain = recipe.to_dict()
    plain.pop("defaults", None)  # which defaults were filled in says nothing that the values do not
    if recipe.adapter:
        plain["adapter"] = {"targets": recipe.adapter.patterns, **adapter_config(recipe).named}
    return flat(plain)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """`train.steps: 100 → 200` for every key whose values differ, by key."""
    return {
        key: f"{key}: {old.get(key)} → {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
