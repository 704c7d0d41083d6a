"""Predicting images without labels: which can be read, how a model sees them, the table of what it says."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from superlora_cli.data.folder import FolderImages
from superlora_cli.data.scan import scan
from superlora_cli.data.splits import Look, evaluation_transform
from superlora_cli.errors import UsageError
from superlora_cli.files import write_atomic
from superlora_cli.models.base import Base
from superlora_cli.tasks.images import size_refused
from superlora_cli.tasks.outputs import check_outputs
from superlora_cli.training.processes import Processes


def readable(root: Path, files: Sequence[str], where: Path) -> tuple[list[int], list[dict[str, Any]]]:
    """Which of the images `files` below `root` can be read, by their place, and `path` and `cause` of the others.

    Raises:
        UsageError: none can be read; it names `where`.
    """
    checked = scan(root, files)
    unreadable = [{"path": file, "cause": checked[file].cause} for file in files if checked[file].cause is not None]
    if len(unreadable) == len(files):
        raise UsageError(f"none of {len(files)} images can be read", where=str(where), hint=unreadable[0]["cause"])
    return [place for place, file in enumerate(files) if checked[file].cause is None], unreadable


def seen_by(base: Base, files: Iterable[Path]) -> FolderImages:
    """Images as the model of a base expects them; the label of each is 0."""
    look = Look(base.image_size, base.mean, base.std)
    return FolderImages([(str(file), 0) for file in files]).seen_through(evaluation_transform(look))


def outputs(base: Base, images: Tensor, processes: Processes, where: Path) -> Tensor:
    """The outputs (B, classes) float32 of the model of a base, which is on its device, for images (B, 3, S, S).

    Raises:
        UsageError: the model does not accept images of this size. RunError: some outputs are NaN or Inf; it names
            `where`.
    """
    with size_refused(base.image_size), processes.autocast():
        found: Tensor = base.model(images.to(processes.device)).float()
    check_outputs(found, str(where))
    return found


def write(out: Path, columns: Iterable[str], rows: Iterable[Iterable[str]], *, force: bool) -> None:
    """Write a table as a CSV file, over an existing file only with `force`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(out, text.getvalue(), force=force)
