"""What is wrong with a recipe, one line per problem: file, line, key, what is wrong, what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from superlora_cli.errors import LongUsageError, UsageError, did_you_mean
from superlora_cli.recipe.describe import Schema, choices, keys_table, phrase, schema_at
from superlora_cli.recipe.places import Places
from superlora_cli.recipe.schema import Recipe, recipe_model
from superlora_cli.table import load_extensions
from superlora_cli.tasks import TASKS

INSTEAD = {  # key → hint for a value that it cannot have
    "adapter": "{method: none} trains only the head; leave adapter out to train the whole base",
}

AUGMENTING = ("augment", "rand_augment", "random_erasing", "balance")

Path = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


def check(of: type[Model], data: Any, places: Places) -> Model:
    """`data` as an object of the schema `of`; `places` knows where each key comes from.

    Raises:
        UsageError: lists all problems, one per line, in the order of the file.
    """
    try:
        return of.model_validate(data)
    except ValidationError as error:
        raise _together(_problems(error, data, of), places) from None


def check_recipe(data: Any, places: Places) -> Recipe:
    """`data` as a recipe whose keys are consistent, except those of the adapter.

    Raises:
        UsageError: as `check`, or for the first key that is inconsistent with others.
    """
    if isinstance(data, dict) and data.get("task") not in [None, *TASKS]:
        load_extensions()  # one of them may add it, with a section
    recipe = check(recipe_model(), data, places)
    for name, kind in TASKS.items():
        if name != recipe.task and kind.section() and getattr(recipe, name) is not None:
            raise UsageError(f"does not apply to the task {recipe.task}", where=places.where(name), hint="leave it out")
    train = recipe.train
    if train.steps is None and train.epochs is None:
        hint = "set steps: 1000 or epochs: 20"
        raise UsageError("missing, and so is train.epochs", where=places.where("train.steps"), hint=hint)
    if train.steps is not None and train.epochs is not None:
        hint = "leave out one of the two; train.steps=null unsets it"
        raise UsageError("cannot be combined with train.steps", where=places.where("train.epochs"), hint=hint)
    if recipe.model.quantize and train.shard_base:
        hint = "leave out one of the two"
        raise UsageError("cannot be combined with model.quantize", where=places.where("train.shard_base"), hint=hint)
    if train.patience is not None and recipe.eval.every is None:
        hint = "set eval.every, the number of steps between evaluations"
        raise UsageError("needs more than one evaluation", where=places.where("train.patience"), hint=hint)
    task = TASKS[recipe.task]
    unfit = {*({"mixup", "cutmix", "columns", "caption"} - {*task.data_keys}), *(() if task.augments else AUGMENTING)}
    others = [f"data.{key}" for key, value in recipe.data if key in unfit and value is not None]
    others += ["train.label_smoothing"] if train.label_smoothing and not task.smooths else []
    others += ["train.teacher"] if train.teacher and not task.taught else []
    for key in others:
        raise UsageError(f"does not apply to the task {recipe.task}", where=places.where(key), hint="leave it out")
    return recipe


def validate(data: Any, places: Places) -> Recipe:
    """`data` as a recipe whose keys, including the adapter's knobs, are consistent, and that trains something.

    Raises:
        UsageError: as `check_recipe`, or for the first knob that is inconsistent with others.
    """
    recipe = check_recipe(data, places)
    if recipe.adapter is None and recipe.model.quantize:
        hint = "add an adapter, or leave it out"
        raise UsageError("quantised weights cannot be trained", where=places.where("model.quantize"), hint=hint)
    if recipe.adapter is not None:
        try:
            config = recipe.adapter.config()
        except UsageError as error:
            if (error.where or "").startswith("adapter"):
                key = str(error.where)
                raise UsageError(error.message, where=places.where(key), hint=error.hint) from None
            raise
        if not (config.adapts or config.also or TASKS[recipe.task].trains_head(recipe)):
            hint = "set model.head: new, adapter.also: [bias], or a method with factors"
            raise UsageError(
                "nothing would be trained: there are no factors and no new head",
                where=places.where("adapter"),
                hint=hint,
            )
    return recipe


class _Problem(NamedTuple):
    path: Path
    message: str
    hint: str | None = None

    @property
    def key(self) -> str:
        return ".".join(map(str, self.path))


def _together(problems: list[_Problem], places: Places) -> UsageError:
    problems = sorted(problems, key=lambda problem: places.rank(problem.key))
    errors = [UsageError(problem.message, where=places.where(problem.key), hint=problem.hint) for problem in problems]
    return errors[0] if len(errors) == 1 else LongUsageError(map(str, errors))


def _problems(error: ValidationError, data: Any, of: type[BaseModel]) -> list[_Problem]:
    """One problem per key. For a union, only the deepest errors count: they are about the form that was meant."""
    kinds: dict[Path, str] = {}
    said: dict[Path, str] = {}  # by validators
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        path = _data_path(detail["loc"], data, detail["type"])
        kinds.setdefault(path, detail["type"])
        if detail["type"] == "value_error":
            said[path] = detail["msg"].removeprefix("Value error, ")
    above = {path[:depth] for path in kinds for depth in range(len(path))}
    deepest = {path: kind for path, kind in kinds.items() if path not in above}
    unknown = {path: _unknown_hint(path, of) for path, kind in deepest.items() if kind == "extra_forbidden"}
    problems = []
    for path, kind in deepest.items():
        if kind == "extra_forbidden":
            problems.append(_Problem(path, f"unknown key '{path[-1]}'", unknown[path]))
        elif kind == "missing":
            meant = any(other[:-1] == path[:-1] and f"'{path[-1]}'" in (hint or "") for other, hint in unknown.items())
            if not meant:  # a misspelt key is one problem, not two
                problems.append(_Problem(path, f"missing, expected {phrase(schema_at(path, of))}"))
        elif kind == "value_error":
            problems.append(_Problem(path, said[path]))
        else:
            node, value = schema_at(path, of), _value_at(data, path)
            hint = INSTEAD.get(".".join(map(str, path))) or _value_hint(node, value)
            problems.append(_Problem(path, f"expected {phrase(node)}, got {_show(value)}", hint))
    return problems


def _data_path(loc: Sequence[str | int], data: Any, kind: str) -> Path:
    """pydantic's location without the names of union members, which are not keys of the data."""
    *above, last = loc or [""]
    path: list[str | int] = []
    for part in above if kind == "missing" else loc:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if inside:
            data = data[part]
            path.append(part)
    return (*path, last) if kind == "missing" else tuple(path)


def _value_at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _unknown_hint(path: Path, of: type[BaseModel]) -> str | None:
    """Suggest a key of this name elsewhere, else a similar one in the same section, else a similar one anywhere."""
    name, parent = str(path[-1]), ".".join(map(str, path[:-1]))
    homes: dict[str, list[str]] = {}
    for row in keys_table(of):
        home, _, leaf = row.key.rpartition(".")
        homes.setdefault(leaf, []).append(home)
    if name in homes:
        return "belongs " + " or ".join(f"under {home}:" if home else "at the top level" for home in homes[name])
    near = did_you_mean(name, [leaf for leaf, where in homes.items() if parent in where])
    if near is None:
        for leaf in difflib.get_close_matches(name, homes, n=1, cutoff=0.8):
            near = f"did you mean '{'.'.join(filter(None, (homes[leaf][0], leaf)))}'?"
    return near


def _value_hint(node: Schema, value: Any) -> str | None:
    wanted = phrase(node)
    if isinstance(value, str) and value.isprintable():
        if "number" in wanted and value.strip().lstrip("+-").replace(".", "", 1).isdecimal():
            return f"write {value.strip()}, without quotes"
        if wanted.startswith(("a list", "a non-empty list")):
            return f'write ["{value}"]' if set(value) & set("[]{}*:") else f"write [{value}]"
        return did_you_mean(value, choices(node))
    if isinstance(value, float) and value.is_integer() and "whole number" in wanted:
        return f"write {int(value)}"
    if wanted == "text" and isinstance(value, bool | int | float):
        return f'write "{_show(value)}"'
    return None


def _show(value: Any) -> str:
    """`value` as written in YAML, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
