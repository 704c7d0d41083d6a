"""Images and their labels from a table `labels.csv` in or next to their folder, or in `train`, `val`, `test`.

The table has the columns `file` (or `filename`, `path`, `image`) and `labels`, or `file` and `label`. Of `labels`, an
image has any number, separated by spaces; its one `label` is its class, and may have spaces in it.

Files are looked for in the folder of images, then next to the table. Images that are not in the table are left out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from timm.utils import natural_key
from torch import Tensor

from superlora_cli.data.folder import FolderImages, decoded, image_names, some
from superlora_cli.data.images import SUFFIXES
from superlora_cli.data.source import TEST, TRAIN, VALIDATION, Source, three_parts
from superlora_cli.errors import UsageError

TABLE = "labels.csv"
FILE, LABELS, LABEL = "file", "labels", "label"  # columns
FILES = (FILE, "filename", "path", "image")  # what the first column may be called
EXAMPLE = "a first line file,label for one class each (photos/1.jpg,cat), or file,labels (photos/1.jpg,cat outdoors)"

Labelled = tuple[str, tuple[int, ...]]  # a file and its labels
Row = tuple[str, str, list[str]]  # its place in the table, a file, its labels by name


class LabelledImages(FolderImages):
    """Image files and their labels, each as zeros and ones over all classes: (classes,) float32."""

    def __init__(self, files: Sequence[Labelled], contents: Sequence[str], classes: int) -> None:
        super().__init__(files, contents)
        self.classes = classes

    def picture(self, index: int) -> tuple[Image.Image, Tensor]:
        image, labels = super().picture(index)
        row = torch.zeros(self.classes)
        row[list(labels)] = 1.0
        return image, row


def find_tables(root: Path) -> list[tuple[Path, Path]]:
    """The tables of a folder of images, each with the folder its files are in; [] if there is none."""
    if (root / TABLE).is_file():
        return [(root / TABLE, root)]
    folders = [root / name for name in (*TRAIN, *VALIDATION, *TEST) if (root / name / TABLE).is_file()]
    if folders:
        return [(folder / TABLE, folder) for folder in folders]
    above = root.resolve().parent / TABLE
    if above.is_file() and any(path.suffix.lower() in SUFFIXES for path in root.iterdir()):
        return [(above, root)]
    return []


def has_several(root: Path) -> bool:
    """Whether a folder of images has a table in which an image has any number of labels.

    Raises:
        UsageError: a table cannot be read.
    """
    return any(LABEL not in _header(_lines(table)) for table, _ in find_tables(root))


def list_table(root: Path, *, training: bool = True) -> tuple[dict[str, int], tuple[list[Labelled] | None, ...]]:
    """The labels by name, in natural order, and the files for training, validation and test; None if there are none.

    Args:
        training: whether images to train on are needed; else a table may have others only.

    Raises:
        UsageError: there is no table, it cannot be parsed, an image is missing, or a label has no training image.
    """
    tables = find_tables(root)
    if not tables:
        raise UsageError(f"holds no {TABLE}", where=str(root), hint=EXAMPLE)
    rows = [row for table, folder in tables for row in _rows(table, folder)]
    seen: dict[str, str] = {}
    for where, path, _ in rows:
        if path in seen:
            raise UsageError(f"'{path}' is listed twice, first at {seen[path]}", where=where, hint="one line per image")
        seen[path] = where

    others = {*VALIDATION, *TEST}
    tops = [top if (top := _top(root, path)) in others else TRAIN[0] for _, path, _ in rows]

    def part(names: tuple[str, ...]) -> list[Row] | None:
        return [row for row, top in zip(rows, tops, strict=True) if top in names] or None

    parts = three_parts(part)
    judges = not training and parts[0] is None
    known = [row for rows in (parts if judges else parts[:1]) for row in rows or ()]
    names = sorted({label for _, _, labels in known for label in labels}, key=natural_key)
    if not names:
        message = "no training image has a label" if parts[0] else "lists no training images"
        raise UsageError(message, where=str(tables[0][0]), hint=EXAMPLE)
    classes = {name: number for number, name in enumerate(names)}
    numbered = [None if found is None else [_numbered(row, classes) for row in found] for found in parts]
    return classes, ([] if judges else numbered[0], *numbered[1:])


def table_classes(root: Path) -> tuple[str, ...]:
    """The names of the labels, in natural order; raises as `list_table`."""
    return tuple(list_table(root)[0])


def read_table(root: Path, *, several: bool) -> Source:
    """The images in a folder's tables, after decoding each of them once.

    Args:
        several: whether they have any number of labels, else one each, their class.

    Raises:
        UsageError: as `list_table`, or no image of a split can be read.
    """
    classes, parts = list_table(root, training=False)
    names = tuple(classes)
    found = decoded(root, parts, lambda labels: " ".join(names[label] for label in labels))
    train, validation, test = (
        part if part is None else LabelledImages(part.files, part.contents, len(names)) if several else _classed(part)
        for part in found.parts
    )
    assert train is not None
    assert found.parts[0] is not None
    readable = {label for _, labels in found.parts[0].files for label in labels}
    for label in range(len(names)) if parts[0] else ():
        if label not in readable:
            message = f"label '{names[label]}': none of its training images can be read"
            raise UsageError(message, where=str(root), hint="replace them, or remove the label")
    notes = [*_unnamed(root, {path for files in parts for path, _ in files or ()}), *found.notes]
    return Source(train, validation, test, names, found.fingerprint, found.unreadable, tuple(notes))


def _classed(images: FolderImages) -> FolderImages:
    """Images that have one label each, as images of classes."""
    return FolderImages([(path, label) for path, (label,) in images.files], images.contents)


def _lines(table: Path) -> list[list[str]]:
    try:
        return list(csv.reader(table.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot be read as a table: {error}", where=str(table), hint=EXAMPLE) from None


def _header(lines: Sequence[Sequence[str]]) -> list[str]:
    """The names of the columns; that of the files has one name."""
    names = [name.strip() for name in lines[0]] if lines else []
    called = next((name for name in FILES if name in names), FILE)
    return [FILE if name == called else name for name in names]


def _rows(table: Path, folder: Path) -> Iterator[Row]:
    lines = _lines(table)
    header = _header(lines)
    column = LABEL if LABEL in header else LABELS
    for name in [*header, FILE, column]:
        if (name in header) != (name in (FILE, column)):
            message = f"unknown column '{name}'" if name in header else f"no column '{name}'"
            hint = f"{EXAMPLE}; if it is something else, set data.multi_label: false"
            raise UsageError(message, where=f"{table}:1", hint=hint)
    for number, line in enumerate(lines[1:], 2):
        where = f"{table}:{number}"
        if not line:
            continue
        if len(line) != len(header):
            message = f"{len(line)} values in {len(header)} columns"
            raise UsageError(message, where=where, hint=f"{LABELS} are separated by spaces")
        values = dict(zip(header, line, strict=True))
        name = values[FILE].strip()
        path = next((place / name for place in (folder, table.parent) if name and (place / name).is_file()), None)
        if path is None:
            raise UsageError(f"no such image '{name}'", where=where, hint=f"files are looked for in {folder}")
        label = values[column].strip()
        if column == LABEL and not label:
            raise UsageError(f"'{name}' has no label", where=where, hint="leave out the line, or give it one")
        yield where, str(path), [label] if column == LABEL else label.split()


def _top(root: Path, path: str) -> str | None:
    """The first folder below `root` in the path of a file; None if there is none."""
    try:
        return (*Path(path).relative_to(root).parts[:-1], None)[0]
    except ValueError:
        return None


def _numbered(row: Row, classes: dict[str, int]) -> Labelled:
    where, path, labels = row
    for label in labels:
        if label not in classes:
            raise UsageError(f"label '{label}' has no training images", where=where, hint="add some, or remove it")
    return path, tuple(sorted({classes[label] for label in labels}))


def _unnamed(root: Path, named: set[str]) -> Iterator[str]:
    """A note about images that are in no table."""
    if left := [path for name in image_names(root) if (path := str(root / name)) not in named]:
        yield f"left out {len(left):,} images that are not in {TABLE}: {some(left)}"
