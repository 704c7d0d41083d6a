"""An adapter of kohya's scripts, LyCORIS, PEFT or diffusers as a superlora adapter."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superlora_cli.adapter import store
from superlora_cli.adapter.from_forms import as_adapter
from superlora_cli.adapter.packed import rows_of
from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.commands.fitting import around, config_of, fitted
from superlora_cli.errors import UsageError
from superlora_cli.files import check_output
from superlora_cli.formats.foreign import Found, include_encoders, read_foreign, updates_of
from superlora_cli.models.build import build
from superlora_cli.models.families.naming import Rows, weighted
from superlora_cli.models.patterns import SHORT_NAMES
from superlora_cli.models.targets import expand
from superlora_cli.opening.base import open_base
from superlora_cli.recipe.load import SUFFIXES, load_recipe, recipe_from_dict, shipped_recipes
from superlora_cli.recipe.schema import ModelSection, Recipe

SHOWN = 10  # keys without a place that an error names


@torch.no_grad()
def import_file(
    path: Path,
    out: Path,
    *,
    base: str,
    knobs: dict[str, Any],
    steps: int,
    partial: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write the adapter that a file of another program is.

    Args:
        path: a safetensors file, or PEFT's folder.
        base: a recipe, whose model it is for, or the name of a model.
        knobs: of an adapter that is fitted to the file's ΔW; {}: the file's own form, exact.
        steps: most steps of fitting, see `adapter.fit.solve.fit`.
        partial: leave out keys that fit no weight of the base.
        force: overwrite `out`.

    Returns:
        output, bytes, method, params, weights (name and relative error of each target), error (of all together),
        left_out (key → reason).

    Raises:
        UsageError: it is no such file, keys fit no weight, or the output exists. RunError: ΔW is not finite.
    """
    asked = config_of(knobs) if knobs else None
    file = read_foreign(path)
    check_output(out, force=force)
    recipe = _recipe(base)
    opened = open_base(recipe)
    include_encoders(opened, file)
    found = updates_of(file, opened)
    _check(found, path, recipe.model.name, partial)
    patterns = _patterns(opened.model, found.forms)
    targets = expand(opened.model, patterns)
    forms = [found.forms[Rows(target.module, target.start, target.stop)] for target in targets]
    rows = rows_of(opened.model, targets)
    if asked:
        goal = [form.dense().flatten(1) for form in forms]
        made, fit = fitted(asked, targets, goal, rows, steps=steps)
        config, tensors, errors, error = made.config, fit.tensors, fit.errors, fit.error
    else:
        knobs, tensors = as_adapter(forms, targets)
        config, errors, error = config_of(knobs), (0.0,) * len(targets), 0.0
    sha256, dtype = store.digest_base(opened.model, targets)
    weights = [{"name": target.name, "error": one} for target, one in zip(targets, errors, strict=True)]
    section = {key: list(value) if isinstance(value, tuple) else value for key, value in knobs.items()}
    adapter = {key: value for key, value in section.items() if value is not None} | {"targets": list(patterns)}
    StoredAdapter.of(
        config,
        targets,
        tensors,
        patterns=patterns,
        base=(recipe.model.name, sha256, dtype),
        recipe=recipe_from_dict({**recipe.to_dict(), "adapter": adapter}, str(path)).to_dict(),
        origin={"imported": path.name, "weights": weights, "error": error},
    ).save(out, force=force)
    return {
        "output": str(out),
        "bytes": out.stat().st_size,
        "method": knobs.get("method"),
        "params": sum(tensor.numel() for tensor in tensors.values()),
        "weights": weights,
        "error": error,
        "left_out": dict(found.left_out),
    }


def _recipe(base: str) -> Recipe:
    """The recipe at a path or of a name, else one around the model of that name."""
    if base.endswith(SUFFIXES) or base in shipped_recipes():
        return load_recipe(base)
    section = ModelSection(name=base, head="frozen")
    return recipe_from_dict(around(section, build(section, classes=None, weights=False).task), "--base")


def _check(found: Found, path: Path, model: str, partial: bool) -> None:
    """Refuse a file of which something, or everything, would be lost."""
    if found.forms and (partial or not found.left_out):
        return
    count, listed = len(found.left_out), [f"{key} ({why})" for key, why in list(found.left_out.items())[:SHOWN]]
    more = [f"and {count - SHOWN} more"] if count > SHOWN else []
    hint = "--partial leaves them out" if found.forms else "give the model that the file was trained on"
    raise UsageError(
        f"{count} keys have no place in {model}: {', '.join([*listed, *more])}", where=str(path), hint=hint
    )


def _patterns(model: nn.Module, rows: Collection[Rows]) -> tuple[str, ...]:
    """Patterns of exactly these rows: short names if they are enough, else the names of all weights."""
    named = [name for name in SHORT_NAMES if _within(model, name, rows)]
    if named and {Rows(*target[:3]) for target in expand(model, named)} == set(rows):
        return tuple(named)
    sizes = weighted(model)
    return tuple(
        one.module if (one.start, one.stop) == (0, sizes[one.module]) else f"{one.module}[{one.start}:{one.stop}]"
        for one in rows
    )


def _within(model: nn.Module, name: str, rows: Collection[Rows]) -> bool:
    try:
        return {Rows(*target[:3]) for target in expand(model, [name])} <= set(rows)
    except UsageError:  # the model has none
        return False
