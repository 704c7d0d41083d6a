"""Load a recipe by name: find the file, read it, override keys, check every key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superlora_cli.errors import UsageError, did_you_mean
from superlora_cli.kinds import Kind, check_kind

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import Recipe

SUFFIXES = (".yaml", ".yml")
SWEEPS = "sweeps"  # the folder inside the shipped recipes that holds sweeps


def shipped_recipes() -> dict[str, Path]:
    """The recipes shipped with superlora, by name (`quickstart`; in a sub-folder `folder/name`), sorted."""
    folder = _shipped()
    return {name: path for name, path in _yaml_files(folder).items() if not path.is_relative_to(folder / SWEEPS)}


def shipped_sweeps() -> dict[str, Path]:
    """The sweeps shipped with superlora, by name (`digits_fig4`), sorted."""
    return _yaml_files(_shipped() / SWEEPS)


def _shipped() -> Path:
    inside = Path(__file__).parent / "shipped"  # in a wheel; in a checkout they are at the top level
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def _yaml_files(folder: Path) -> dict[str, Path]:
    files = [path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(files)}


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe, given a path or the name of a shipped recipe, with or without `.yaml`. Paths come first.

    Raises:
        UsageError: there is neither; the hint suggests a similar name.
    """
    return _find(name_or_path, shipped_recipes(), "recipe")


def find_sweep(name_or_path: str | Path) -> Path:
    """The file of a sweep, found like that of a recipe.

    Raises:
        UsageError: there is none; the hint suggests a similar name.
    """
    return _find(name_or_path, shipped_sweeps(), "sweep")


def is_override(text: str) -> bool:
    """Whether an argument in the place of a recipe is KEY=VALUE, so that there is no recipe.

    >>> is_override("train.steps=5"), is_override("quickstart")
    (True, False)
    """
    return "=" in text and not os.path.exists(text)


def _find(name_or_path: str | Path, shipped: Mapping[str, Path], kind: str) -> Path:
    path = Path(name_or_path)
    listed = f"`superlora ls {kind}s` lists the shipped ones"
    if os.path.exists(path) and not os.path.isdir(path):  # unlike the methods of Path, these never raise
        check_kind(path, f"a {kind}", (Kind.SWEEP if kind == "sweep" else Kind.RECIPE, Kind.TEXT, Kind.JSON), listed)
        return path
    name = path.with_suffix("").as_posix() if path.suffix in SUFFIXES else path.as_posix()
    if name in shipped:
        return shipped[name]
    check_kind(path, f"a {kind}", (), listed)
    if is_override(str(name_or_path)):
        raise UsageError(f"no {kind} is given", where=str(name_or_path), hint=f"a {kind} first, then KEY=VALUE")
    near = did_you_mean(name, shipped) or did_you_mean(Path(name).name, shipped)
    hint = " ".join(filter(None, (near, listed)))
    raise UsageError(f"no such file or shipped {kind}", where=str(name_or_path), hint=hint)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = (), *, defaults: int | None = None) -> Recipe:
    """The recipe with KEY=VALUE `overrides` applied in order, and unset keys filled in.

    Args:
        defaults: version of the defaults if the recipe has none; None: that of `defaults.version_of`.

    Raises:
        UsageError: lists everything that is wrong, one per line: `recipe.yaml:7: train.steps: expected a whole number`.
    """
    from superlora_cli.recipe.defaults import version_of, with_defaults
    from superlora_cli.recipe.overrides import apply_overrides, parse_overrides
    from superlora_cli.recipe.places import Places
    from superlora_cli.recipe.problems import validate
    from superlora_cli.recipe.yaml import read_yaml

    path = find_recipe(name_or_path)
    document = read_yaml(path)
    places = Places(str(path), document.positions)
    apply_overrides(document.data, parse_overrides(overrides), places)
    return with_defaults(validate(document.data, places), defaults or version_of(path), places)


def recipe_from_dict(data: Any, source: str, overrides: Sequence[str] = (), *, defaults: int = 1) -> Recipe:
    """The recipe from `Recipe.to_dict`, as stored in an adapter file or `run.json`; `source` names that file.

    Args:
        defaults: version of the defaults if the data record none.

    Raises:
        UsageError: lists everything that is wrong, one per line.
    """
    import copy

    from superlora_cli.recipe.defaults import with_defaults
    from superlora_cli.recipe.overrides import apply_overrides, parse_overrides
    from superlora_cli.recipe.places import Places
    from superlora_cli.recipe.problems import validate

    if not isinstance(data, dict):
        raise UsageError(f"expected the keys of a recipe, got {type(data).__name__}", where=source)
    data, places = copy.deepcopy(data), Places(source)
    apply_overrides(data, parse_overrides(overrides), places)
    return with_defaults(validate(data, places), defaults, places)
