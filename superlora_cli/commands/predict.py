"""Predict the classes of unlabelled images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from superlora_cli.commands.predictions import outputs, readable, seen_by, write
from superlora_cli.data.batches import evaluation_batches
from superlora_cli.data.folder import image_names
from superlora_cli.data.images import SUFFIXES
from superlora_cli.errors import UsageError
from superlora_cli.kinds import Kind, check_kind
from superlora_cli.opening.build import build_from_file
from superlora_cli.opening.results import resolve_result
from superlora_cli.progress import with_bar
from superlora_cli.tasks import TASKS, image_task_of
from superlora_cli.tasks.images import Prediction, names_of, outputs_of
from superlora_cli.training.processes import join


@torch.no_grad()
def predict(
    path: Path,
    folder: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    allow_mismatch: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write the two likeliest classes of every image below `folder`, or of an image, to the CSV file `out`, in natural
    order.

    If images have several labels, write all labels with a probability above one half.

    Args:
        force: overwrite `out`.

    Returns:
        task, predictions (the file), n, classes (name → number of images), unreadable (path and cause).

    Raises:
        UsageError: no image can be read, or `out` exists or cannot be written. RunError: the model gives NaN or Inf.
    """
    alone = [folder.name] if folder.is_file() and folder.suffix.lower() in SUFFIXES else []
    if not (folder.is_dir() or alone):
        check_kind(folder, "a folder of images", ())
        raise UsageError("no such folder", where=str(folder), hint="a folder of images, or an image")
    if not out.parent.is_dir():
        raise UsageError("no such folder", where=str(out.parent), hint="create it first")
    names = alone or image_names(folder)
    if not names:
        check_kind(folder, "a folder of images", (Kind.FOLDER,))
        raise UsageError("holds no images", where=str(folder), hint=f"files such as {', '.join(SUFFIXES[:6])}")
    root = folder.parent if alone else folder
    places, unreadable = readable(root, names, folder)
    names = [names[place] for place in places]

    file = resolve_result(path)
    built = build_from_file(file, overrides, allow_mismatch=allow_mismatch)
    recipe, base = built.recipe, built.base
    if not TASKS[recipe.task].tells_classes:
        raise UsageError(
            f"a base for {base.task} predicts no classes", where=str(path), hint="use a run with task: classification"
        )
    processes = join(recipe.train)
    try:
        model = processes.place(built.model).eval()
        images = seen_by(base, (root / name for name in names))
        classes, kind = names_of(built.class_names, outputs_of(model)), image_task_of(recipe)
        rows: list[Prediction] = []
        batches = evaluation_batches(images, recipe.eval.batch_size, workers=recipe.data.workers, pin=False)
        with built.kept():
            for batch, _ in with_bar(batches, "predicting", total=len(images), size=lambda batch: len(batch[1])):
                rows += kind.predictions(outputs(base, batch, processes, file), classes)
    finally:
        processes.end()
    write(
        out,
        ("file", *kind.predicted),
        ((name, *row.values) for name, row in zip(names, rows, strict=True)),
        force=force,
    )
    counts = dict(Counter(label for row in rows for label in row.labels).most_common())
    task = recipe.task
    return {"task": task, "predictions": str(out), "n": len(names), "classes": counts, "unreadable": unreadable}
