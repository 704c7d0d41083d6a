"""The number of parameters that a recipe trains, counted without torch from the known shapes of its base."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.data.known import known_class_count
from superlora_cli.models.catalogue import Base, find
from superlora_cli.tasks import TASKS

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import Recipe


def trained_head(recipe: Recipe, base: Base) -> Mapping[str, tuple[int, ...]] | None:
    """Shapes of the trained tensors of the head, by name: {} for none, None where the classes are unknown."""
    if not TASKS[recipe.task].trains_head(recipe):
        return {}
    classes = recipe.data.num_classes or known_class_count(recipe.data)
    return None if classes is None else base.new_head(classes)


def trained_params(recipe: Recipe) -> dict[str, int | None]:
    """Numbers of parameters: `adapter` (including what `also` trains; 0 without an adapter), `head` (trained; None
    if unknown), `base` (the whole model).

    Raises:
        UsageError: an unknown model, targets that it does not have, or knobs that do not fit its weights.
    """
    named, arguments = recipe.model.name, json.dumps(recipe.model.kwargs, sort_keys=True)
    base = _find(named, arguments)
    head = trained_head(recipe, base)
    adapter = 0
    if recipe.adapter is not None:
        targets, config = _targets(named, arguments, recipe.adapter.patterns), recipe.adapter.config()
        adapter = plan(config, targets).params + sum(math.prod(shape) for shape in base.also(config.also).values())
    heads = None if head is None else sum(math.prod(shape) for shape in head.values())
    return {"adapter": adapter, "head": heads if recipe.adapter is not None else 0, "base": base.params}


@cache
def _find(name: str, arguments: str) -> Base:
    return find(name, json.loads(arguments))


@cache
def _targets(name: str, arguments: str, patterns: tuple[str, ...]) -> tuple[TargetShape, ...]:
    return tuple(_find(name, arguments).targets(patterns))
