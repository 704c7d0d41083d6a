"""Defaults of unset keys, by version: a run keeps the defaults that it was trained with.

Version 1 applies to runs that record no version. Version 2 scales ΔW by the base's weights, and has a default learning
rate and schedule. Version 3 has a larger `alpha` under a linear F with ρ < 1. The values filled in are written to the
recipe of the run, with the version, so its readers need no table of defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from superlora_cli.adapter.config import NEWEST, usual_rate
from superlora_cli.errors import UsageError
from superlora_cli.recipe.places import Places
from superlora_cli.recipe.schema import AdapterSection, OptimizerSection, Recipe, SchedulerSection
from superlora_cli.recipe.yaml import read_yaml
from superlora_cli.tasks import TASKS

HEAD_RATE = 0.01  # of a new head trained with an adapter, in recipes that `init` writes
ONE_CYCLE = SchedulerSection.model_validate({"name": "OneCycleLR", "pct_start": 0.1})
BY_GRADIENT = ("SGD", "ASGD")  # their step is proportional to the square of ΔW's scale


def with_defaults(recipe: Recipe, version: int, places: Places) -> Recipe:
    """The recipe with its unset keys filled in, by its own version of the defaults, else by `version`.

    Raises:
        UsageError: the learning rate is unset and has no default.
    """
    version = recipe.defaults or version
    if "head" not in recipe.model.model_fields_set:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"head": TASKS[recipe.task].head})})
    train = recipe.train
    optimizer, scheduler = train.optimizer, train.scheduler or (SchedulerSection() if version == 1 else ONE_CYCLE)
    if optimizer.lr is None:
        optimizer = optimizer.model_copy(update={"lr": _rate(recipe, version, places)})
    adapter = recipe.adapter
    if adapter and adapter.alpha is None and optimizer.name not in BY_GRADIENT:
        adapter = _scaled(adapter, version)
    filled: dict[str, Any] = {
        "adapter": adapter,
        "train": train.model_copy(update={"optimizer": optimizer, "scheduler": scheduler}),
    }
    if version > 1 and any(getattr(recipe, name) != section for name, section in filled.items()):
        filled["defaults"] = version  # if no key was left to a default, the version does not matter
    return recipe.model_copy(update=filled)


def _scaled(adapter: AdapterSection, version: int) -> AdapterSection:
    try:
        config = adapter.config(defaults=version)
    except UsageError:  # the knobs contradict each other, which is reported elsewhere
        return adapter
    scale = {"scaling": config.scaling, **({} if config.alpha is None else {"alpha": config.alpha})}
    return adapter.model_copy(update=scale) if config.scaling == "weights" else adapter


def default_rate(recipe: Recipe) -> float | None:
    """The learning rate of a recipe that sets none; None if it must set one."""
    if recipe.adapter is None or recipe.train.optimizer.name != OptimizerSection().name:
        return None
    fits = TASKS[recipe.task].rate_of_any_scale or not recipe.adapter.scales_itself
    return usual_rate(recipe.adapter.bits) if fits else None


def _rate(recipe: Recipe, version: int, places: Places) -> float:
    if version > 1 and (rate := default_rate(recipe)) is not None:
        return rate
    what = "training the whole base" if recipe.adapter is None else recipe.train.optimizer.name
    hint = f"{what} has no default learning rate"
    if version > 1 and recipe.adapter and recipe.train.optimizer.name == OptimizerSection().name:
        usual = usual_rate(recipe.adapter.bits)
        hint = f"leave out adapter.alpha and scaling, with which {usual:g} fits any base; or lr: find, or your own"
    raise UsageError("missing, expected a number ≥ 0", where=places.where("train.optimizer.lr"), hint=hint)


def version_of(file: Path) -> int:
    """The version for a recipe file without one: 1 in a run folder, since newer runs record it; else the newest."""
    return 1 if (file.parent / "run.json").is_file() else NEWEST


def recorded(run: Path) -> int:
    """The version that the run in a folder was started with; the newest if there is no recipe.

    Raises:
        UsageError: its recipe cannot be read.
    """
    file = run / "recipe.yaml"
    found = read_yaml(file).data.get("defaults", 1) if file.is_file() else NEWEST
    return found if isinstance(found, int) and 1 <= found <= NEWEST else NEWEST
