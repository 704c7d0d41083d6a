"""Predict the class of every image by its own adapter, with one base in memory."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from superlora_cli.adapter import store
from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.commands.predictions import outputs, readable, seen_by, write
from superlora_cli.data.batches import chosen_batches
from superlora_cli.errors import MismatchError, UsageError, did_you_mean
from superlora_cli.opening.base import open_base
from superlora_cli.opening.build import recipe_of
from superlora_cli.opening.results import ADAPTER_FILE
from superlora_cli.opening.switching import Switching
from superlora_cli.progress import with_bar
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import TASKS, image_task_of
from superlora_cli.tasks.images import Prediction, names_of, outputs_of
from superlora_cli.training.processes import join

COLUMNS = ("file", "adapter")
SHOWN = 5  # most unknown adapters that an error names


@torch.no_grad()
def assign(
    table: Path, adapters: Path, out: Path, overrides: Sequence[str] = (), *, force: bool = False
) -> dict[str, Any]:
    """Write the classes that each image's own adapter predicts to the CSV file `out`, in the order of the table.

    Args:
        table: a CSV file with the columns `file` (an image, relative to the table) and `adapter`.
        adapters: a folder with NAME.safetensors or a run folder NAME for every adapter.
        force: overwrite `out`.

    Returns:
        task, predictions (the file), n, adapters (name → number of images), unreadable (path and cause).

    Raises:
        UsageError: the table is wrong or names an adapter that does not exist, no image can be read, or `out` exists.
            MismatchError: the adapters do not all belong to one base. RunError: one gives NaN or Inf. Nothing is
            written then.
    """
    rows = _read(table)
    files = _files(adapters, [name for _, name in rows], table)
    stored = {name: store.load(file) for name, file in files.items()}
    recipe = _recipe(stored, files, overrides)
    places, unreadable = readable(table.parent, [file for file, _ in rows], table)
    rows = [rows[place] for place in places]
    base = open_base(recipe, next(iter(stored.values())))
    processes = join(recipe.train)
    try:
        model = processes.place(base.model).eval()
        switching, kind = Switching(model), image_task_of(recipe)
        images = seen_by(base, (table.parent / file for file, _ in rows))
        batches = list(_batches([name for _, name in rows], recipe.eval.batch_size))
        found: dict[int, Prediction] = {}
        loaded = chosen_batches(images, [own for _, own in batches], workers=recipe.data.workers)
        bar = with_bar(loaded, "predicting", total=len(rows), size=lambda batch: len(batch[1]))
        current = None
        for (name, own), (batch, _) in zip(batches, bar, strict=True):
            if name != current:
                adapter, current = switching.use(stored[name], str(files[name])), name
            with adapter.kept():
                logits = outputs(base, batch, processes, files[name])
            classes = names_of(stored[name].classes, outputs_of(model))
            found |= zip(own, kind.predictions(logits, classes), strict=True)
    finally:
        processes.end()
    write(
        out, (*COLUMNS, *kind.predicted), ((*row, *found[place].values) for place, row in enumerate(rows)), force=force
    )
    counts = dict(Counter(name for _, name in rows).most_common())
    return {"task": recipe.task, "predictions": str(out), "n": len(rows), "adapters": counts,
            "unreadable": unreadable}  # fmt: skip


def _read(table: Path) -> list[tuple[str, str]]:
    """(file, adapter) of every row."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                hint = f"a first line {','.join(COLUMNS)}"
                raise UsageError(f"has no column '{missing[0]}'", where=str(table), hint=hint)
            rows = [(row["file"] or "", row["adapter"] or "") for row in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UsageError(f"cannot be read: {error}", where=str(table), hint="a CSV file: file,adapter") from None
    for number, row in enumerate(rows, 2):
        if not all(row):
            raise UsageError("a row without file or adapter", where=f"{table}:{number}", hint="file,adapter")
    if not rows:
        raise UsageError("has no rows", where=str(table), hint="a line file,adapter for every image")
    return rows


def _files(adapters: Path, names: Sequence[str], table: Path) -> dict[str, Path]:
    """The file of every adapter that the table names."""
    if not adapters.is_dir():
        raise UsageError("no such folder", where=str(adapters), hint="a folder of adapter files or runs")
    known = {path.stem: path for path in adapters.glob("*.safetensors")}
    known |= {path.parent.name: path for path in adapters.glob(f"*/{ADAPTER_FILE}")}
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if unknown:
        named = ", ".join(unknown[:SHOWN]) + (f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else "")
        hint = did_you_mean(unknown[0], known) or f"{adapters} has {len(known)} adapters"
        raise UsageError(f"unknown adapter: {named}", where=str(table), hint=hint)
    return {name: known[name] for name in dict.fromkeys(names)}


def _recipe(stored: dict[str, StoredAdapter], files: dict[str, Path], overrides: Sequence[str]) -> Recipe:
    """The recipe of the first adapter, if all have its base, its task and its image size."""
    recipes = {name: recipe_of(one, files[name], overrides) for name, one in stored.items()}
    first, recipe = next(iter(recipes.items()))
    if not TASKS[recipe.task].tells_classes:
        raise UsageError(f"{recipe.task} predicts no classes", where=str(files[first]), hint="task: classification")
    for name, other in recipes.items():
        for what, ours, theirs in (("task", recipe.task, other.task), ("base", recipe.model, other.model)):
            if ours != theirs:
                message = f"has another {what} than {first}"
                raise MismatchError(message, where=str(files[name]), hint="one table for each base")
        if other.data.image_size != recipe.data.image_size:
            sizes = " and ".join(_size(one) for one in (other, recipe))
            message = f"is for another image size than {first}: {sizes}"
            raise MismatchError(message, where=str(files[name]), hint="one table for each image size")
    return recipe


def _size(recipe: Recipe) -> str:
    return f"{recipe.data.image_size or 'the own size of its base'}"


def _batches(names: Sequence[str], size: int) -> Iterator[tuple[str, list[int]]]:
    """The indices of the images in batches of at most `size`, each with the adapter of all of them.

    >>> list(_batches(["a", "b", "a", "a"], 2))
    [('a', [0, 2]), ('a', [3]), ('b', [1])]
    """
    own: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        own.setdefault(name, []).append(index)
    for name, indices in own.items():
        for start in range(0, len(indices), size):
            yield name, indices[start : start + size]
