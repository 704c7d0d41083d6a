"""What a search found: the best setting as a recipe, beside the first trial's; the front; what mattered."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superlora_cli.analysis.pictures import save_picture
from superlora_cli.errors import RunError
from superlora_cli.files import write_atomic, write_json
from superlora_cli.recipe.overrides import Override, apply_overrides
from superlora_cli.recipe.places import Places
from superlora_cli.recipe.yaml import dump_yaml, read_yaml
from superlora_cli.reporting.pareto import front
from superlora_cli.sweeping.folder import Row
from superlora_cli.sweeping.plan import Run

if TYPE_CHECKING:
    from superlora_cli.tuning.search import Search


@dataclass(frozen=True)
class Finalist:
    """A setting that was trained with several seeds: a run, its result and its validation metric for each."""

    runs: Sequence[Run]
    rows: Sequence[Row]
    values: Sequence[float]

    @property
    def trial(self) -> int:
        """The number of the trial."""
        return int(self.runs[0].id.removeprefix("trial"))

    @property
    def mean(self) -> float:
        """The mean validation metric."""
        return statistics.mean(self.values)


def found(search: Search, finalists: Sequence[Finalist]) -> dict[str, Any]:
    """Write best.yaml, front.svg and tune.json, and return what is in the last.

    Raises:
        RunError: no trial was finished.
    """
    folder = search.folder
    if not finalists:
        cause = next(iter(search.errors.values()), "every trial was stopped")
        raise RunError("no trial was finished", where=str(folder.path), hint=cause)
    sign = 1 if search.higher else -1
    best = max(finalists, key=lambda one: (sign * one.mean, -(one.runs[0].params["adapter"] or 0), -one.trial))
    states = [trial.state.name for trial in search.study.trials]
    points = _points(search)
    on_front = front([point["size"] for point in points], [point["value"] for point in points], higher=search.higher)
    told = {
        "status": "completed",
        "out": str(folder.path),
        "budget": {"bytes" if search.space.budget.in_bytes else "params": search.space.budget.most},
        "metric": search.measure,
        "trials": {
            "finished": states.count("COMPLETE"),
            "stopped": states.count("PRUNED"),
            "failed": states.count("FAIL"),
        },
        "best": _as_dict(search, best),
        "finalists": [_as_dict(search, one) for one in finalists],
        "importances": search.study.importances(),
        "front": [points[index] for index in on_front],
        "recipe": str(folder.best),
        "plot": str(folder.front),
        "results": str(folder.path / "results.csv"),
        "errors": [{"id": name, "error": error} for name, error in search.errors.items()],
    }
    write_atomic(folder.best, _recipe(search, best, told), force=True)
    _draw(folder.front, points, on_front, search)
    write_json(folder.found, told)
    return told


def _as_dict(search: Search, one: Finalist) -> dict[str, Any]:
    """A finalist for people and programs; `run` is that of its seeds with the best validation metric."""
    choose = max if search.higher else min
    chosen = choose(range(len(one.values)), key=lambda index: one.values[index])
    trial = search.study.trials[one.trial]
    offer = search.space.offer(trial.params)
    names = [name for name in one.rows[0]["metrics"] if all(_number(row["metrics"].get(name)) for row in one.rows)]
    return {
        "trial": one.trial,
        "form": trial.params["form"],
        "settings": search.space.settings(trial.params),
        "params": offer.plan.params,
        "bytes": offer.plan.bytes,
        "seeds": [run.recipe.seed for run in one.runs],
        "metrics": {name: [row["metrics"][name] for row in one.rows] for name in names},
        "run": str(search.folder.of(one.runs[chosen])),
    }


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def _points(search: Search) -> list[dict[str, Any]]:
    """Every finished trial: its number, form, size (in what the budget limits) and validation metric."""
    points = []
    for trial in sorted(search.study.finished(), key=lambda trial: trial.number):
        size = search.space.budget.size(search.space.offer(trial.params).plan)
        points.append({"trial": trial.number, "form": trial.params["form"], "size": size, "value": trial.value})
    return points


def _recipe(search: Search, best: Finalist, told: Mapping[str, Any]) -> str:
    """The user's recipe with the best setting, and what was found as a comment."""
    subject = search.subject
    document = read_yaml(subject.file)
    data, places = deepcopy(document.data), Places(str(subject.file), document.positions)
    settings = subject.settings(search.space.settings(search.study.trials[best.trial].params))
    chosen = [Override(tuple(key.split(".")), value, key) for key, value in settings.items()]
    apply_overrides(data, [*subject.overrides, *chosen], places)
    data.pop("output", None)
    counts, metric = told["trials"], search.measure
    lines = [
        f"Found by superlora tune {subject.file.name} within {search.space.budget}.",
        f"Trial {best.trial} of {sum(counts.values())}: "
        f"{counts['finished']} finished, {counts['stopped']} stopped early, {counts['failed']} failed.",
        f"{metric} over seeds {', '.join(str(run.recipe.seed) for run in best.runs)}: "
        f"{', '.join(f'{value:.4g}' for value in best.values)} (mean {best.mean:.4g}).",
    ]
    if others := [one for one in told["finalists"] if one["trial"] != best.trial]:
        means = [
            f"trial {one['trial']} ({one['form']}) {statistics.mean(one['metrics'][metric]):.4g}" for one in others
        ]
        lines.append(f"The next best, likewise: {', '.join(means)}.")
    if told["importances"]:
        shares = [f"{name} {share:.0%}" for name, share in told["importances"].items()]
        lines.append(f"What mattered: {', '.join(shares)}.")
    comment = "\n".join(f"# {part}" for line in lines for part in textwrap.wrap(line, 110))
    return f"{comment}\n{dump_yaml(data)}"


def _draw(path: Path, points: Sequence[Mapping[str, Any]], on_front: Sequence[int], search: Search) -> None:
    """Validation metric against size, a point per finished trial, a colour per kind of form, the front as steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    unit = "bytes" if search.space.budget.in_bytes else "parameters"
    axes = figure.add_subplot(xlabel=f"{unit} of the adapter", ylabel=search.measure)
    for kind in dict.fromkeys(point["form"].rpartition(",")[0] or point["form"] for point in points):
        own = [point for point in points if (point["form"].rpartition(",")[0] or point["form"]) == kind]
        axes.scatter([point["size"] for point in own], [point["value"] for point in own], s=18, label=kind)
    steps = [points[index] for index in on_front]
    axes.step([point["size"] for point in steps], [point["value"] for point in steps], where="post", color="0.4", lw=1)
    axes.axvline(search.space.budget.most, color="tab:red", ls="--", lw=1, label="budget")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_picture(figure, path)
