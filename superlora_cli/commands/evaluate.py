"""Evaluate a finished run, from its file alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from superlora_cli.data.splits import seen_in_training
from superlora_cli.errors import UsageError
from superlora_cli.files import read_json
from superlora_cli.opening.build import build_from_file, stored_recipe
from superlora_cli.opening.results import resolve_result
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import TASKS, task_of
from superlora_cli.tasks.classification.confusion_table import ConfusionTable
from superlora_cli.tasks.reading import other_data
from superlora_cli.tasks.work import Work
from superlora_cli.training.processes import join


def evaluate(
    path: Path, overrides: Sequence[str] = (), *, allow_mismatch: bool = False, plot: Path | None = None
) -> dict[str, Any]:
    """Metrics of a run or adapter on the test split of its recipe's data.

    Args:
        plot: file for a plot of the confusion matrix.

    Returns:
        task, metrics, n, for classification per_class, what was evaluated, and notes: reasons to doubt the metrics.

    Raises:
        UsageError: the data have a class that the model does not know, or the plot cannot be written.
    """
    if plot is not None and not plot.parent.is_dir():
        raise UsageError("no such folder", where=str(plot.parent), hint="create it first")
    file = resolve_result(path)
    built, trained = build_from_file(file, overrides, allow_mismatch=allow_mismatch), stored_recipe(file)
    known = read_json(file.parent / "run.json").get("data", "")
    if _source(built.recipe) != _source(trained):
        built.trained_on = known
    kind = task_of(built.recipe)
    if plot is not None and not kind.confuses:
        labelled = TASKS[built.recipe.task].tells_classes
        what = "images with several labels have" if labelled else f"the task {built.recipe.task} has"
        raise UsageError(f"{what} no confusion matrix", where="--plot", hint="leave it out")
    processes = join(built.recipe.train)
    try:
        task = kind(built, processes)
        task.shows_progress = True
        judged = task.judge("test")
        if plot is not None and judged.confusion and processes.is_main:
            _draw(judged.confusion, plot)
        return {
            "task": built.recipe.task,
            "metrics": judged.metrics,
            **({} if judged.per_class is None else {"per_class": judged.per_class}),
            "n": len(task.splits.test),
            "data": built.recipe.data.name,
            "model": built.recipe.model.name,
            "params": built.params["adapter"],
            "notes": [*filter(None, (built.base.note, *task.splits.notes)), *_doubts(task, trained, known)],
        }
    finally:
        processes.end()


def _source(recipe: Recipe) -> tuple[str, str, str | None]:
    """What says which data a recipe means."""
    return recipe.data.name, recipe.data.root, recipe.data.config


def _doubts(task: Work, trained: Recipe, known: str) -> Iterator[str]:
    """Warn if the data changed since training or if test images were trained on, as far as that can be known.

    Args:
        known: the fingerprint of the data of training, "" if unknown.
    """
    splits = task.splits
    changed = bool(known) and known != splits.fingerprint
    if changed and task.built.trained_on is None:
        what = f"the data changed since training ({known[:12]}…, now {splits.fingerprint[:12]}…)"
        yield f"{what}: {other_data(TASKS[task.recipe.task].elements)}"
    elif not changed and trained.data == task.recipe.data:
        return
    with suppress(UsageError):  # the training data are gone
        seen = seen_in_training(splits.test, task.read(trained).train)
        if seen is not None:
            yield seen


def _draw(confusion: ConfusionTable, plot: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    confusion.paint(figure)
    try:
        figure.savefig(plot)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the plot: {error}", where=str(plot), hint="a .svg, .png or .pdf file") from None
