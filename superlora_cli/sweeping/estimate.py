"""How long a sweep may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from superlora_cli.data.known import is_embedded
from superlora_cli.recipe.schema import Recipe
from superlora_cli.sweeping.folder import Row
from superlora_cli.sweeping.plan import SweepPlan

BASES = ("glyphs_vit", "glyphs_unet", "digits_classifier")  # available on every machine


def estimate(plan: SweepPlan, rows: Sequence[Row], workers: int) -> dict[str, Any]:
    """The training time of the unfinished runs on this machine, without evaluation and generating images.

    Returns:
        steps: number of steps left; None if runs count epochs. seconds: None if unknown. from: the basis of the
        estimate.
    """
    done = {row["id"]: row for row in rows if row["status"] == "completed"}
    todo = [run for run in plan.possible if run.id not in done]
    counts = [run.recipe.train.steps for run in todo]
    steps = None if None in counts else sum(filter(None, counts))
    found: dict[str, Any] = {"steps": steps, "seconds": None, "workers": workers}
    known = [row for row in done.values() if row["seconds"] and row["steps"]]
    at_a_time = f"{workers} at a time"
    if not todo:
        return {**found, "seconds": 0.0, "from": "all runs are done"}
    if steps is None:
        return {**found, "from": "the number of steps in train.epochs is only known from the images"}
    if known:
        each = sum(row["seconds"] for row in known) / sum(row["steps"] for row in known)
        said = f"from the {len(known)} finished runs, {at_a_time}"
        return {**found, "seconds": steps * each / workers, "from": said}
    if not all(_at_hand(run.recipe) for run in todo):
        return {**found, "from": "no run is finished yet"}
    from superlora_cli.sweeping.job import seconds_per_step  # imports torch, which takes seconds

    rates: dict[tuple[Any, ...], float] = {}
    total = 0.0
    for run in todo:
        train = run.recipe.train
        key = (run.recipe.model.name, run.recipe.data.name, train.batch_size, train.accumulate, train.threads)
        if key not in rates:
            rates[key] = seconds_per_step(run.recipe)
        total += train.length * rates[key]
    said = f"from a few steps here, without evaluation and generated images, {at_a_time}"
    return {**found, "seconds": total / workers, "from": said}


def _at_hand(recipe: Recipe) -> bool:
    """Whether a few steps can be timed here and now."""
    return recipe.model.name in BASES and recipe.model.checkpoint is None and is_embedded(recipe.data.name)
