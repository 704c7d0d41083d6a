"""Expand a sweep file to its runs: their recipes, names and numbers of parameters."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from superlora_cli.adapter.config import NEWEST
from superlora_cli.analysis.trained import trained_params
from superlora_cli.commands.generators import GENERATORS
from superlora_cli.errors import LongUsageError, UsageError
from superlora_cli.files import canonical
from superlora_cli.recipe.defaults import with_defaults
from superlora_cli.recipe.load import find_recipe, find_sweep
from superlora_cli.recipe.overrides import Override, apply_overrides
from superlora_cli.recipe.places import Places
from superlora_cli.recipe.problems import check, check_recipe
from superlora_cli.recipe.schema import Recipe
from superlora_cli.recipe.yaml import Document, dump_yaml, read_yaml
from superlora_cli.sweeping.schema import Grid, Measure, Sweep
from superlora_cli.tasks import TASKS

SAMPLING = {"num", "sampler", "steps", "guidance"}  # keys of `measure` that are options of `superlora generate`
SLUG = 100  # most characters of an id before its seed and digest
SHOWN = 10  # most impossible runs listed in an error

Setting = tuple[str, Any, str]  # a recipe key, its value, and its place in the sweep file


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        id: name of its folder: the settings that differ, its seed, and a digest of the whole recipe. It depends on
            nothing else, so adding or removing other runs does not change it.
        name: name of the recipe it starts from.
        overrides: settings of this run that do not apply to all runs, by dotted key.
        params: `adapter`, `head` (None if unknown) and `base`; {} if the run is impossible.
        impossible: why the run is impossible; None if it is possible.
    """

    id: str
    name: str
    overrides: Mapping[str, Any]
    recipe: Recipe
    params: Mapping[str, int | None]
    impossible: str | None = None


@dataclass(frozen=True)
class SweepPlan:
    """A sweep file, expanded.

    Attributes:
        file: its path; `text` is its content.
        runs: in the order of the sweep, without duplicates, including impossible ones.
    """

    file: Path
    text: str
    runs: tuple[Run, ...]
    measure: Measure | None
    skip_impossible: bool

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.file.stem

    @property
    def possible(self) -> tuple[Run, ...]:
        """The possible runs."""
        return tuple(run for run in self.runs if run.impossible is None)

    @property
    def impossible(self) -> tuple[Run, ...]:
        """The impossible runs."""
        return tuple(run for run in self.runs if run.impossible is not None)

    def checked(self) -> tuple[Run, ...]:
        """The runs to do.

        Raises:
            UsageError: some are impossible and `skip_impossible` is not set, or all of them are.
        """
        if self.impossible and not self.skip_impossible:
            listed = [f"{run.id}: {run.impossible}" for run in self.impossible]
            more = [f"… and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
            lines = [f"{len(listed)} of {len(self.runs)} runs are impossible:", *listed[:SHOWN], *more]
            raise LongUsageError(lines, where=str(self.file), hint="skip_impossible: true leaves them out")
        if not self.possible:
            raise UsageError("all of its runs are impossible", where=str(self.file), hint=self.runs[0].impossible)
        return self.possible


def load_plan(name_or_path: str | Path) -> SweepPlan:
    """The runs of the sweep at a path, or of a shipped sweep.

    Raises:
        UsageError: names the line of the sweep file or recipe that is wrong.
    """
    file = find_sweep(name_or_path)
    document = read_yaml(file)
    places = Places(str(file), document.positions)
    sweep = check(Sweep, document.data, places)
    runs: dict[tuple[str, ...], Run] = {}
    for recipe, settings in _points(sweep, document, file):
        run = run_of(recipe, settings)
        by = TASKS[run.recipe.task].generates
        if sweep.measure and not (by and {*GENERATORS[by].options} >= SAMPLING):
            hint = f"{run.name} is for {run.recipe.task}; its metrics are in the results anyway"
            raise UsageError("only diffusion runs generate images", where=places.where("measure"), hint=hint)
        runs.setdefault(tuple(run.id.rsplit("-", 2)[1:]), run)  # each recipe and seed only once
    return SweepPlan(file, file.read_text(encoding="utf-8"), tuple(runs.values()), sweep.measure, sweep.skip_impossible)


@dataclass(frozen=True)
class Settings:
    """Settings of all runs, of one block of the file, and of one point of its grid; later ones override."""

    common: Sequence[Setting]
    fixed: Sequence[Setting]
    chosen: Sequence[Setting]

    def __iter__(self) -> Iterator[Setting]:
        return iter((*self.common, *self.fixed, *self.chosen))


def _points(sweep: Sweep, document: Document, file: Path) -> Iterator[tuple[Path, Settings]]:
    """The recipe file and the settings of every run, in order: the grid, then `runs`; seeds vary fastest."""

    def placed(above: str, values: Mapping[str, Any]) -> list[Setting]:
        return [(key, value, f"{file}:{_line(document, above, key)}") for key, value in values.items()]

    common = placed("set", sweep.set)
    blocks: list[tuple[str, str | None, list[Setting], Grid]] = []  # where in the file, recipe, settings, grid
    if sweep.grid or not sweep.runs:
        blocks.append(("", sweep.recipe, [], sweep.grid or {}))
    for index, entry in enumerate(sweep.runs or ()):
        above = f"runs.{index}"
        blocks.append(
            (f"{above}.", entry.recipe or sweep.recipe, placed(above, entry.model_extra or {}), entry.grid or {})
        )
    for above, name, fixed, grid in blocks:
        path = _recipe_file(name, file, _line(document, f"{above}recipe".rpartition(".")[0], "recipe"))
        axes = [[(key, value, f"{file}:{_line(document, f'{above}grid', key)}") for value in grid[key]] for key in grid]
        for chosen in product(*axes):
            settings = Settings(common, fixed, chosen)
            for key, _, where in settings:
                if sweep.seeds and key == "seed":
                    raise UsageError("the seed is set twice", where=f"{where}: seed", hint="use either seed or seeds")
                if key.partition(".")[0] == "output":
                    raise UsageError(
                        "the sweep sets the folders of its runs", where=f"{where}: {key}", hint="leave it out"
                    )
            if not sweep.seeds:
                yield path, settings
            for seed in sweep.seeds or ():
                seeded = [*common, ("seed", seed, f"{file}:{_line(document, '', 'seeds')}")]
                yield path, Settings(seeded, fixed, chosen)


def _line(document: Document, above: str, key: str) -> int:
    path = f"{above}.{key}" if above else key
    while path and path not in document.positions:
        path = path.rpartition(".")[0]
    return document.positions[path][0] if path else 1


def _recipe_file(name: str | None, file: Path, line: int) -> Path:
    """A path relative to the sweep file, else as `find_recipe`."""
    where = f"{file}:{line}: recipe"
    if name is None:
        raise UsageError("missing, expected the name of a recipe", where=where, hint="recipe: digits_lora")
    relative = file.parent / name
    if relative.is_file():
        return relative
    try:
        return find_recipe(name)
    except UsageError as error:
        raise UsageError(f"{error.message}: {name}", where=where, hint=error.hint) from None


@cache
def _read(path: Path, changed: float) -> Document:
    return read_yaml(path)


def run_of(path: Path, settings: Settings) -> Run:
    """The run of a recipe with settings on top.

    Raises:
        UsageError: the recipe is wrong, or a key is unknown.
    """
    document = _read(path, path.stat().st_mtime)
    data, places = copy.deepcopy(document.data), Places(str(path), document.positions)
    overrides = [Override(tuple(key.split(".")), copy.deepcopy(value), where) for key, value, where in settings]
    apply_overrides(data, overrides, places)
    train = data.get("train")
    if isinstance(train, dict) and train.get("threads") is None:
        train["threads"] = 1  # the same bytes however many runs share the machine
    recipe = with_defaults(check_recipe(data, places), NEWEST, places)
    chosen, fixed = (
        {leaf: value for key, value, _ in some for leaf, value in _leaves(key, value)}
        for some in (settings.chosen, settings.fixed)
    )
    own = chosen | {key: value for key, value in fixed.items() if key not in chosen}
    try:
        params, impossible = trained_params(recipe), None
    except UsageError as error:
        if not (error.where or "").startswith("adapter"):
            raise
        params, impossible = {}, str(error).replace("\n", " ")
    return Run(_id(path.stem, own, recipe), path.stem, own, recipe, params, impossible)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The keys of a section that is set as a whole."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _id(name: str, own: Mapping[str, Any], recipe: Recipe) -> str:
    """`digits_lora-rank2-s0-1f3870be`: the digest is of the recipe without its seed and output.

    >>> _slug({"adapter.rank": 2, "adapter.projection": "linear_v2", "adapter.targets": ["q", "v"]})
    ['rank2', 'projection-linear_v2', 'targets-q-v']
    """
    said = {key: value for key, value in recipe.to_dict().items() if key not in ("defaults", "seed", "output")}
    digest = hashlib.sha256(canonical(said).encode()).hexdigest()[:8]
    slug = "-".join([name, *_slug(own)])[:SLUG].rstrip("-")
    return f"{slug}-s{recipe.seed}-{digest}"


def _slug(own: Mapping[str, Any]) -> list[str]:
    words = []
    for key, value in own.items():
        text = re.sub(r"[^A-Za-z0-9_.+]+", "-", dump_yaml([value])).strip("-.")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        words.append(key.rpartition(".")[2] + ("" if number else "-") + text)
    return words
