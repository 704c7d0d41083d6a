"""What starting recipes for images and for texts share: they are built, to see which targets a model has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from superlora_cli.adapter.config import NEWEST
from superlora_cli.errors import UsageError
from superlora_cli.opening.build import Built, build_for_training
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.yaml import dump_yaml, parse_yaml


def build_start(data: dict[str, Any]) -> Built:
    """The model of a starting recipe, without weights."""
    return build_for_training(recipe_from_dict(data, "the starting recipe", defaults=NEWEST), weights=False)


def first_targets(
    template: str,
    settings: dict[str, Any],
    choices: Sequence[Sequence[str]],
    enough: Callable[[Built], bool] = lambda built: True,
) -> Built:
    """The model with an adapter on the first of some targets that it has and that are enough, else on the last.

    Args:
        template: the recipe's text, to be formatted with `settings`, whose `targets` are set to those that were found.

    Raises:
        UsageError: it does not have the last either, or something else is wrong.
    """
    for targets in choices:
        last = targets is choices[-1]
        settings["targets"] = dump_yaml(targets).strip()
        try:
            built = build_start(parse_yaml(template.format(**settings)).data)
        except UsageError as error:
            if last or "targets" not in (error.where or ""):
                raise
            continue
        if last or enough(built):
            return built
    raise AssertionError


def inline(value: str | bool) -> str:
    """A scalar as written inside a YAML flow mapping."""
    return dump_yaml([value]).strip().removeprefix("[").removesuffix("]")
