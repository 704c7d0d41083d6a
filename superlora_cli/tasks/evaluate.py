"""Evaluate finished runs, from their file alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from superlora_cli.analysis.confusion import per_class
from superlora_cli.analysis.confusion_table import ConfusionTable
from superlora_cli.errors import UsageError
from superlora_cli.tasks.build import build_from_file
from superlora_cli.tasks.choose import task_of
from superlora_cli.tasks.classification import Classification
from superlora_cli.tasks.results import resolve_result
from superlora_cli.training.processes import join


def evaluate(
    path: Path, overrides: Sequence[str] = (), *, allow_mismatch: bool = False, plot: Path | None = None
) -> dict[str, Any]:
    """Metrics of a run or adapter on the test split of its recipe's data.

    Args:
        plot: picture of the confusion matrix to write.

    Returns:
        task, metrics, n, for classification per_class, and what was evaluated.

    Raises:
        UsageError: a class of the data that the model does not know, or a picture that cannot be written.
    """
    if plot is not None and not plot.parent.is_dir():
        raise UsageError("no such folder", where=str(plot.parent), hint="make it first")
    built = build_from_file(resolve_result(path), overrides, allow_mismatch=allow_mismatch)
    if plot is not None and built.recipe.task != "classification":
        raise UsageError(f"the task {built.recipe.task} has no classes to confuse", where="--plot", hint="leave it out")
    processes = join(built.recipe.train)
    try:
        task = task_of(built.recipe)(built, processes)
        found: dict[str, Any] = {"task": built.recipe.task}
        if isinstance(task, Classification):
            found["metrics"], matrix = task.judge("test")
            found["per_class"] = per_class(matrix, task.output_names)
            if plot is not None and processes.is_main:
                _draw(matrix, task.output_names, plot)
        else:
            found["metrics"] = task.evaluate("test")
        return {
            **found,
            "n": len(task.splits.test),  # type: ignore[arg-type]
            "data": built.recipe.data.name,
            "model": built.recipe.model.name,
            "params": built.adapter.plan.params if built.adapter else 0,
        }
    finally:
        processes.end()


def _draw(matrix: Tensor, names: Sequence[str], plot: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    ConfusionTable(tuple(names), matrix.numpy()).paint(figure)
    try:
        figure.savefig(plot)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot write the picture: {error}", where=str(plot), hint="a .svg, .png or .pdf file"
        ) from None
