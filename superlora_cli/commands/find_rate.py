"""A learning rate for a recipe, found by a range test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from superlora_cli.analysis.pictures import picture_kind
from superlora_cli.analysis.rate_curve import draw
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.defaults import default_rate
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import task_of
from superlora_cli.training.display import Display
from superlora_cli.training.processes import join
from superlora_cli.training.rates import STEPS, range_test


def find_rate(recipe: Recipe, console: Console, *, plot: Path | None = None) -> dict[str, Any]:
    """Suggest a value for `train.optimizer.lr`, ignoring the recipe's own; writes nothing except the plot.

    Returns:
        rate, curve ([rate, smoothed loss] for every step) and plot; notes, where the rate is doubtful.

    Raises:
        UsageError: the recipe is wrong, or the plot cannot be written. RunError: no rate is found.
    """
    if plot is not None:
        picture_kind(plot)
    built = build_for_training(recipe)
    processes = join(recipe.train)
    try:
        processes.seed(recipe.seed)
        task = task_of(recipe)(built, processes)
        task.begin()
        display = Display(console, steps=STEPS, start=0, quiet=not processes.is_main)
        found = range_test(task, task.recipe.train, processes, display)
        if plot is not None:
            processes.on_main(lambda: draw(plot, found.curve, found.proposed))
    finally:
        processes.end()
    doubt = found.doubt(default_rate(recipe))
    done = {"rate": found.proposed, "curve": found.curve, "plot": None if plot is None else str(plot)}
    return {**done, "notes": [doubt]} if doubt else done
