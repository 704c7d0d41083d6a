"""From the command's words to a search: the recipe, the budget and the space are checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from superlora_cli.errors import UsageError
from superlora_cli.models.catalogue import find
from superlora_cli.recipe.load import find_recipe, load_recipe
from superlora_cli.recipe.overrides import parse_overrides
from superlora_cli.recipe.places import Places
from superlora_cli.recipe.problems import check
from superlora_cli.recipe.schema import Recipe
from superlora_cli.recipe.yaml import read_yaml
from superlora_cli.sweeping.estimate import estimate
from superlora_cli.sweeping.plan import Run, SweepPlan
from superlora_cli.tuning.folder import Subject, TuneFolder
from superlora_cli.tuning.schema import Space
from superlora_cli.tuning.search import Limits, Search
from superlora_cli.tuning.space import Budget, SearchSpace, usual_space
from superlora_cli.tuning.study import KEPT

KEPT_KNOBS = ("targets", "seed", "also", "execution")  # of the recipe's adapter; all others belong to the space


@dataclass(frozen=True)
class Prepared:
    """A search that can begin."""

    recipe: Recipe
    subject: Subject
    space: SearchSpace
    limits: Limits
    folder: TuneFolder

    def example(self) -> Run:
        """The first trial of the space, or some other one.

        Raises:
            UsageError: a key of the space is not one of a recipe, or has a wrong value.
        """
        some = {
            key: among[0] if isinstance(among, list) else among.low for key, among in self.space.space.ranges.items()
        }
        values = self.space.first[0] if self.space.first else {"form": next(iter(self.space.forms)), **some}
        return self.subject.run("trial000", self.space.settings(values))

    @property
    def rung(self) -> int | None:
        """The step at which trials are compared: an evaluation at about a third; None if there is none so early."""
        steps, every = self.recipe.train.steps, self.recipe.eval.every
        if steps is None or every is None:
            return None
        rung = max(round(steps / KEPT / every), 1) * every
        return rung if rung <= steps / 2 else None

    def planned(self, workers: int) -> dict[str, Any]:
        """What `--dry-run` prints: the forms within the budget, the ranges, and how long it may take."""
        trials = self.limits.trials
        run = self.example()
        runs = tuple(run for _ in range(trials or 1))
        time = estimate(SweepPlan(self.subject.file, "", runs, None, False), [], workers)
        if trials is None and self.limits.minutes is not None:
            time = {**time, "seconds": self.limits.minutes * 60, "from": "--minutes"}
        return {
            "status": "dry-run",
            "out": str(self.folder.path),
            "budget": {"bytes" if self.space.budget.in_bytes else "params": self.space.budget.most},
            "forms": self.space.described(),
            "left_out": [{"form": one.form, "why": one.why} for one in self.space.left_out],
            "ranges": self.space.space.model_dump()["ranges"],
            "first": self.space.first,
            "trials": trials,
            "steps": run.recipe.train.steps,
            "compared_at": self.rung,
            "time": time,
        }

    def search(self, console: Console, *, workers: int | None, ray: str | None, quiet: bool) -> dict[str, Any]:
        """Conduct it, from the beginning or from where it was stopped.

        Raises:
            UsageError: Optuna or Ray is missing, or the folder holds something else. InterruptedRunError: by a signal.
        """
        from superlora_cli.tasks import task_of
        from superlora_cli.tasks.reading import settled

        self.example()
        measure = f"val_{task_of(settled(self.recipe)).measure}"
        about = {
            "recipe": self.recipe.to_dict(),
            "bytes" if self.space.budget.in_bytes else "budget": self.space.budget.most,
            "space": self.space.space.model_dump(),
        }
        with self.folder.opened(about):
            search = Search(self.folder, self.subject, self.space, self.limits, measure=measure, rung=self.rung)
            return search.conduct(console, workers=workers, ray=ray, quiet=quiet)


def prepare(
    name: str,
    overrides: Sequence[str],
    most: int,
    *,
    in_bytes: bool,
    space: Path | None,
    seeds: int,
    trials: int | None,
    minutes: float | None,
    out: Path | None,
) -> Prepared:
    """Check everything.

    Raises:
        UsageError: the recipe or the space is wrong, no form fits the budget, or the recipe leaves nothing to choose.
    """
    recipe, file = load_recipe(name, overrides), find_recipe(name)
    if recipe.adapter is None or not recipe.adapter.patterns:
        raise UsageError("adapts no weight", where=f"{file}: adapter", hint="adapter: {targets: [q, v]}")
    if recipe.eval.select != "validation":
        hint = "eval.select: validation"
        raise UsageError("trials are compared on validation data", where=f"{file}: eval.select", hint=hint)
    budget = Budget(most, in_bytes)
    targets = find(recipe.model.name, recipe.model.kwargs).targets(recipe.adapter.patterns)
    searched = _read(space) if space else usual_space(recipe, targets, budget)
    where = str(space) if space else "the usual space"
    kept = {key: value for key in KEPT_KNOBS if (value := getattr(recipe.adapter, key)) not in (None, ())}
    subject = Subject(file, parse_overrides(overrides), kept)
    folder = out or Path("runs") / "tune" / f"{file.stem}-{most}{'-bytes' if in_bytes else ''}"
    return Prepared(
        recipe,
        subject,
        SearchSpace(searched, budget, targets, where),
        Limits(trials, minutes, seeds),
        TuneFolder(folder),
    )


def _read(file: Path) -> Space:
    document = read_yaml(file)
    return check(Space, document.data, Places(str(file), document.positions))
