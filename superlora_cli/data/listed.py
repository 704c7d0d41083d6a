"""Data sets whose parts are listed in files beside their images: VTAB-1k's text files, FGVC's JSON files.

VTAB-1k, as papers share it: `train800.txt`, `val200.txt`, `train800val200.txt` and `test.txt`, with a line for each
image: its path below the data set's folder, and its class, `images/test/000000.jpg 41`.

FGVC, as papers share it (Jia et al., 2022): `train.json`, `val.json` and `test.json`, each an object from an image's
path to its class, `{"001.Black_footed_Albatross/0046_18.jpg": 1}`. Paths are below the data set's folder, or below its
`images` or `Images`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from superlora_cli.data.folder import Labelled, decoded
from superlora_cli.data.source import Source
from superlora_cli.errors import UsageError

IMAGES = (".", "images", "Images")  # where the paths of FGVC's lists may begin
TRAIN, VALIDATION, WHOLE, TEST = "train800", "val200", "train800val200", "test"
SEEN = "trains on all 1,000 images (data.validation: 0): the 200 of validation are among them"


def read_vtab(root: Path, classes: int, *, whole: bool) -> Source:
    """A data set of VTAB-1k: 800 training, 200 validation, and its test images.

    Args:
        root: its folder.
        whole: train on the 1,000 of both parts.

    Raises:
        UsageError: a list is missing or wrong, or no image of a part can be read.
    """
    parts = [_lines(root / f"{name}.txt", classes) for name in (WHOLE if whole else TRAIN, VALIDATION, TEST)]
    return _source(root, parts, tuple(map(str, range(classes))), (SEEN,) if whole else ())


def read_fgvc(root: Path, classes: int) -> Source:
    """A data set of FGVC: the classes are the numbers of its lists, in order.

    Raises:
        UsageError: as `read_vtab`, or there are more or fewer classes.
    """
    lists = [_object(root / f"{name}.json") for name in ("train", "val", "test")]
    known = sorted(set().union(*(found.values() for found in lists)))
    if len(known) != classes:
        raise UsageError(f"its lists have {len(known)} classes, not {classes}", where=str(root))
    first = next(iter(lists[0]))
    folder = next((root / name for name in IMAGES if (root / name / first).is_file()), root)
    numbers = {label: number for number, label in enumerate(known)}
    parts = [[(str(folder / path), numbers[label]) for path, label in found.items()] for found in lists]
    return _source(root, parts, tuple(map(str, known)), ())


def _source(root: Path, parts: Sequence[Sequence[Labelled]], names: tuple[str, ...], notes: tuple[str, ...]) -> Source:
    found = decoded(root, parts, names.__getitem__)
    train, validation, test = found.parts
    assert train is not None
    return Source(train, validation, test, names, found.fingerprint, found.unreadable, (*notes, *found.notes))


def _lines(file: Path, classes: int) -> list[Labelled]:
    found = []
    for number, line in enumerate(_text(file).splitlines(), start=1):
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal() or int(label) >= classes:
            message = f"'{line}' is not a path and a class below {classes}"
            raise UsageError(message, where=f"{file}:{number}", hint="a line is like: images/test/000000.jpg 0")
        found.append((str(file.parent / path), int(label)))
    if not found:
        raise UsageError("lists no images", where=str(file))
    return found


def _object(file: Path) -> dict[str, int]:
    try:
        found = json.loads(_text(file))
    except ValueError as error:
        raise UsageError(f"cannot be read: {error}", where=str(file)) from None
    labels = found.values() if isinstance(found, dict) else ()
    if not labels or not all(isinstance(label, int) for label in labels):
        hint = 'it is like: {"001.Black_footed_Albatross/0046_18.jpg": 1}'
        raise UsageError("is not a JSON object of paths and their classes", where=str(file), hint=hint)
    return dict(found)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        hint = "data.root is the folder that holds the data sets of the suite (docs/suites.md)"
        raise UsageError(f"cannot be read: {cause}", where=str(file), hint=hint) from None
