"""The finished runs below some folders, with settings and results. Reads JSON, loads no weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.errors import UsageError
from superlora_cli.kinds import Kind, check_kind
from superlora_cli.reporting.history import History
from superlora_cli.tasks.classification.confusion_table import ConfusionTable
from superlora_cli.training.run import CONFUSION_FILE

STOPPED = "stopped early by superlora tune"
RESULTS = ("adapter.safetensors", "model.safetensors")
# Keys of a recipe that do not affect results, or that only make another repetition of the same setting.
INCIDENTAL = ("seed", "output", "adapter.seed", "data.root", "data.workers", "data.download", "eval.batch_size",
              "train.device", "train.threads", "train.keep", "train.checkpoint_every", "train.checkpoint_at",
              "train.log_every", "train.profile", "adapter.execution")  # fmt: skip


class Skipped(NamedTuple):
    """A run that is not reported, and why."""

    path: str
    why: str


@dataclass(frozen=True)
class Samples:
    """Metrics of a run's generated images, from `superlora eval --against`; `settings` as in its metrics.json."""

    metrics: Mapping[str, float]
    settings: Mapping[str, Any]
    reference: str
    made: Mapping[str, Any]
    grid: Path | None


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        result: its adapter.safetensors or model.safetensors.
        config: the adapter's knobs, None where the model itself was trained.
        setting: the recipe without incidental keys, all knobs written out; equal for repetitions.
        seeds: of the recipe, and of the adapter if it has its own.
        found_rate: the learning rate, where a range test found it; `setting` then says `find`.
        params, head: trained parameters of the adapter (or of the whole model), and of a new head.
        metrics: on the test split, by name; NaN where a run has no number. `before`: of the unadapted base.
        validation: the same on the validation split, at the best step; {} if chosen on the test split, or unknown.
        picture: of the validation prompts, at the last evaluation.
        notes: on its data, a line each.
        history: of the training. confusion: on the test split, None where the run has none.
    """

    path: Path
    result: Path
    recipe: Mapping[str, Any]
    config: AdapterConfig | None
    setting: Mapping[str, Any]
    seeds: tuple[int, int | None]
    found_rate: float | None
    params: int
    head: int
    bytes: int
    metrics: Mapping[str, float]
    before: Mapping[str, float]
    samples: Samples | None
    picture: Path | None
    validation: Mapping[str, float]
    notes: tuple[str, ...]
    history: History
    confusion: ConfusionTable | None

    @property
    def subject(self) -> tuple[str, str, str]:
        """Task, base model and data set: only runs that agree in these can be compared."""
        return self.recipe["task"], self.recipe["model"]["name"], self.recipe["data"]["name"]


def collect(folders: Sequence[Path]) -> tuple[list[Run], list[Skipped]]:
    """All runs at or below the folders, by path, each once; and those that are unfinished or damaged.

    Raises:
        UsageError: a folder is missing, or there is no finished run.
    """
    runs, skipped = [], []
    for path in run_folders(folders):
        try:
            runs.append(read_run(path))
        except _UnfitError as problem:
            skipped.append(Skipped(str(path), str(problem)))
    if not runs:
        where = ", ".join(map(str, folders))
        if skipped:
            first = skipped[0]
            hint = f"{first.path}: {first.why}" + (f"; {len(skipped) - 1} more" if len(skipped) > 1 else "")
            raise UsageError("no finished run", where=where, hint=hint)
        for folder in folders:
            check_kind(folder, "a folder that holds runs", (Kind.FOLDER, Kind.RUN, Kind.RUNS, Kind.SWEEP_FOLDER))
        raise UsageError("no run found", where=where, hint="a folder that holds runs of `superlora train`")
    return runs, skipped


def run_folders(folders: Sequence[Path]) -> Iterator[Path]:
    """Every folder with a recipe.yaml and a run.json, at or below `folders`, once; none inside another."""
    seen = set()
    for top in folders:
        if not top.is_dir():
            check_kind(top, "a folder that holds runs", ())
            raise UsageError("no such folder", where=str(top), hint="a run, or a folder that holds runs")
        for name, below, files in os.walk(top):
            below.sort()
            if "run.json" in files and "recipe.yaml" in files:
                below.clear()
                if (real := os.path.realpath(name)) not in seen:
                    seen.add(real)
                    yield Path(name)


class _UnfitError(Exception):
    """Why a run cannot be reported."""


def read_run(path: Path) -> Run:
    """The run in a folder."""
    about = _json(path / "run.json")
    status = about.get("status")
    if status == "stopped":
        raise _UnfitError(STOPPED)
    if status != "completed":
        raise _UnfitError(f"{status}: not finished" if isinstance(status, str) else "run.json has no status")
    result = next((path / name for name in RESULTS if (path / name).is_file()), None)
    if result is None:
        raise _UnfitError("has no " + " or ".join(RESULTS))
    evaluated = _json(path / "eval.json")
    try:
        recipe, params, found = about["recipe"], about["params"], about.get("found_rate")
        adapter = recipe.get("adapter")
        config = _config(adapter) if adapter is not None else None
        history, metrics = History.read(path / "metrics.jsonl"), _numbers(about["metrics"])
        return Run(
            path=path,
            result=result,
            recipe=recipe,
            config=config,
            setting=setting(recipe, config, finds=found is not None),
            seeds=(recipe["seed"], (adapter or {}).get("seed")),
            found_rate=found,
            params=int(params["adapter"] if config else params["base"]),
            head=int(params["head"]),
            bytes=result.stat().st_size,
            metrics=_numbers(evaluated["metrics"]),
            before={name.removesuffix("_before"): v for name, v in metrics.items() if name.endswith("_before")},
            samples=_samples(path / "samples"),
            picture=max((path / "pictures").glob("step-*.png"), default=None),
            validation=_validation(recipe, metrics, history),
            notes=tuple(map(str, about.get("notes", ()))),
            history=history,
            confusion=_confusion(path / CONFUSION_FILE),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _UnfitError(f"damaged: {type(error).__name__} {error}") from None
    except UsageError as error:
        raise _UnfitError(str(error)) from None


def setting(recipe: Mapping[str, Any], config: AdapterConfig | None, *, finds: bool = False) -> dict[str, Any]:
    """All that a result depends on apart from the seed: the recipe, with the knobs of its preset written out.

    Args:
        finds: whether the learning rate was found by a range test, and so is no setting.
    """
    result = deepcopy(dict(recipe))
    if finds:
        result["train"]["optimizer"]["lr"] = "find"
    if config is not None:
        knobs = config.named
        knobs |= {"rank": list(config.ranks), "core": config.core_kind, "alpha": config.scale * config.scale_rank}
        result["adapter"] = {"targets": recipe["adapter"].get("targets") if config.adapts else None, **knobs}
    for key in INCIDENTAL:
        *sections, name = key.split(".")
        place: Any = result
        for section in sections:
            place = place.get(section) or {}
        place.pop(name, None)
    return result


def _config(adapter: Mapping[str, Any]) -> AdapterConfig:
    knobs = {key: value for key, value in adapter.items() if key not in ("method", "targets")}
    return AdapterConfig.from_knobs(adapter.get("method"), **knobs)


def _validation(recipe: Mapping[str, Any], metrics: Mapping[str, float], history: History) -> dict[str, float]:
    """The metrics by which the best step was chosen; {} where that was the test split."""
    if recipe["eval"]["select"] != "validation":
        return {}
    recorded = {name.removeprefix("val_"): value for name, value in metrics.items() if name.startswith("val_")}
    return history.at(metrics.get("best_step")) | recorded


def _confusion(file: Path) -> ConfusionTable | None:
    """None where there is no readable table: a report can do without it."""
    try:
        return ConfusionTable.from_csv(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _samples(folder: Path) -> Samples | None:
    if not (folder / "metrics.json").is_file():
        return None
    found = _json(folder / "metrics.json")
    grid = folder / "grid.png"
    return Samples(
        metrics=_numbers(found["metrics"]),
        settings=dict(found["settings"]),
        reference=str(found["reference"]["name"]),
        made=dict(found.get("generated", {})),
        grid=grid if grid.is_file() else None,
    )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Every metric as a float; null (no finite value) becomes NaN."""
    return {name: math.nan if value is None else float(value) for name, value in metrics.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _UnfitError(f"has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise _UnfitError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise _UnfitError(f"{path.name} is not a JSON object")
    return content
