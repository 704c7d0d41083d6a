"""Finds the adapter or model file of a run, and the files that its recipe names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from superlora_cli.data.known import is_embedded
from superlora_cli.errors import UsageError
from superlora_cli.files import read_json
from superlora_cli.kinds import Kind, check_kind
from superlora_cli.models.embedded import LANGUAGE, PIPELINES
from superlora_cli.opening.hub import local
from superlora_cli.recipe.schema import Recipe
from superlora_cli.weights.foreign import IMPORT, recognise_folder

ADAPTER_FILE, MODEL_FILE = "adapter.safetensors", "model.safetensors"
LIBRARIES = ("diffusers:", "transformers:")
WANTED = "a run or an adapter"
TRAINED_IN = "folder"  # key of run.json: the working directory of the training
PATHS = ("model.checkpoint", "model.name", "data.name", "data.root", "text-to-image.prior.images", "train.teacher.run")
FORMS = ("wds/", "hfds/", "local-dir:", "transformers:", "diffusers:")  # what may come before a path


def base_named(source: str) -> str | None:
    """The `model.name` of a language model or pipeline without an adapter: shipped, `transformers:` or `diffusers:` …,
    or the folder of one, such as `superlora merge` writes; None if it is none of these.
    """
    if source in (*PIPELINES, *LANGUAGE) or source.startswith(LIBRARIES):
        return source
    folder, (of_pipelines, of_models) = Path(source), LIBRARIES
    if (folder / "model_index.json").is_file():
        return of_pipelines + source
    alone = (folder / "config.json").is_file() and not (folder / "recipe.yaml").exists()
    return of_models + source if alone else None


def resolve_result(path: Path) -> Path:
    """The adapter or model file at `path`: the file itself, the one in a run folder, or one on the hub (`hf-hub:`).

    Raises:
        UsageError: there is none.
    """
    path = local(path)
    if path.is_dir():
        for name in (ADAPTER_FILE, MODEL_FILE):
            if (path / name).is_file():
                return path / name
        foreign = recognise_folder(path)
        if foreign:
            raise UsageError(f"{foreign}, not a superlora adapter", where=str(path), hint=IMPORT)
        check_kind(path, WANTED, (Kind.RUN, Kind.FOLDER))
        unfinished = (path / "recipe.yaml").exists()
        hint = "the run is not finished: resume it" if unfinished else "give a run folder or an adapter file"
        raise UsageError(f"holds no {ADAPTER_FILE}", where=str(path), hint=hint)
    if not path.is_file():
        raise UsageError("no such run or adapter", where=str(path), hint="give a run folder or an adapter file")
    check_kind(path, WANTED, (Kind.ADAPTER, Kind.MODEL, Kind.WEIGHTS), f"a run folder or an {ADAPTER_FILE}")
    return path


def from_here(recipe: Recipe, run: Path) -> Recipe:
    """The recipe of a run in the folder `run`; paths that lead nowhere from here start where it was trained."""
    folder = read_json(run / "run.json").get(TRAINED_IN)
    if not isinstance(folder, str):
        return recipe
    for key in PATHS:
        if key != "model.name" or ":" in recipe.model.name:  # else it is the name of an architecture
            recipe = _changed(recipe, key, Path(folder))
    return recipe


def _changed(section: Any, key: str, folder: Path) -> Any:
    """A section of a recipe in which the path at a dotted key starts in a folder, if it leads nowhere else."""
    name, _, below = key.partition(".")
    value = getattr(section, name, None)
    if value is None:
        return section
    new = _changed(value, below, folder) if below else _found(value, folder)
    return section.model_copy(update={name: new})


def _found(value: str, folder: Path) -> str:
    form = next((form for form in FORMS if value.startswith(form)), "")
    here, there = Path(value.removeprefix(form)), folder / value.removeprefix(form)
    return value if is_embedded(value) or here.exists() or not there.exists() else f"{form}{os.path.relpath(there)}"
