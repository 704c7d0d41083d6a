"""A folder of the user's own images: one sub-folder per class, in `train`, `val` and `test` or all in one folder.

The class of an image is the first folder on its path, as for torchvision's ImageFolder; the folders in that one only
hold its images. Hidden files and folders, and macOS's `__MACOSX`, are passed over.

Images that cannot be read are left out and reported. A class folder without images gets no class number: there is
nothing to learn from it. If no training image of a class can be read, that is an error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils import natural_key

from superlora_cli.data.images import SUFFIXES, is_own, open_rgb
from superlora_cli.data.scan import scan
from superlora_cli.data.source import TRAIN, Pictures, Source, Unreadable, three_parts
from superlora_cli.errors import UsageError
from superlora_cli.kinds import Kind, check_kind

L = TypeVar("L")  # a class, or several labels
Labelled = tuple[str, int]  # a file and its class
NAMED = 3  # files named in a note
WANTED = "use one sub-folder of images per class, or a table labels.csv with the columns file,label"


class FolderImages(Pictures):
    """Image files, their classes, and digests of their bytes if known."""

    def __init__(self, files: Sequence[tuple[str, Any]], contents: Sequence[str] = ()) -> None:
        self.files, self._contents = files, contents

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int) -> tuple[Image.Image, Any]:
        path, label = self.files[index]
        return open_rgb(path), label

    @property
    def labels(self) -> Sequence[Any]:
        return [label for _, label in self.files]

    @property
    def contents(self) -> Sequence[str]:
        return self._contents


def folder_classes(root: Path) -> tuple[str, ...]:
    """The names of the classes, in natural order: those of the folders that hold training images.

    Raises:
        UsageError: as `list_folder`.
    """
    return tuple(list_folder(root)[0])


def read_folder(root: Path) -> Source:
    """The images in a folder, after decoding each of them once.

    Raises:
        UsageError: as `list_folder`, or no image of a class or split can be read.
    """
    classes, parts = list_folder(root, training=False)
    names, train = tuple(classes), parts[0]
    found = decoded(root, parts, names.__getitem__)
    images, validation, test = found.parts
    assert train is not None
    assert images is not None
    for label in {label for _, label in train} - {label for _, label in images.files}:
        count = sum(label == other for _, other in train)
        hint = "replace them, or remove the folder"
        raise UsageError(f"class '{names[label]}': none of {count} images can be read", where=str(root), hint=hint)
    notes = (*(_empty(root, [path for path, _ in train]) if train else ()), *found.notes)
    return Source(images, validation, test, names, found.fingerprint, found.unreadable, notes)


@dataclass(frozen=True)
class Decoded:
    """The readable images of a folder, by part, and what is known about the others.

    Attributes:
        fingerprint: SHA-256 of names, sizes and labels.
    """

    parts: Sequence[FolderImages | None]
    fingerprint: str
    unreadable: tuple[Unreadable, ...]
    notes: tuple[str, ...]


def decoded(root: Path, parts: Sequence[Sequence[tuple[str, L]] | None], said: Callable[[L], str]) -> Decoded:
    """Decode the images below a folder.

    Args:
        parts: files and labels of every part.
        said: the name of a label.

    Raises:
        UsageError: no image of a part can be read.
    """
    checked = scan(root, [name_below(root, path) for files in parts if files for path, _ in files])
    digest, bad = hashlib.sha256(), []
    kept: list[FolderImages | None] = []
    for files in parts:
        good, contents = [], []
        for path, label in files or []:
            name = name_below(root, path)
            size, cause = checked[name].size, checked[name].cause
            if cause is None:
                good.append((path, label))
                contents.append(checked[name].content)
                digest.update(f"{name}\0{size}\0{said(label)}\0".encode(errors="surrogateescape"))
            else:
                bad.append(Unreadable(path, cause))
        if files and not good:
            raise UsageError(f"none of {len(files)} images can be read: {bad[-1].cause}", where=bad[-1].path)
        kept.append(None if files is None else FolderImages(good, contents))
    note = f"left out {len(bad):,} of {len(checked):,} images that cannot be read: "
    notes = (note + some([f"{file.path} ({file.cause})" for file in bad]),) if bad else ()
    return Decoded(kept, digest.hexdigest(), tuple(bad), notes)


def list_folder(root: Path, *, training: bool = True) -> tuple[dict[str, int], tuple[list[Labelled] | None, ...]]:
    """The classes by name, and the files for training, validation and test; None if there is no such folder.

    Training images of which none is in a class folder are one class, called like `root`, and so are such images of the
    other parts.

    Args:
        training: whether images to train on are needed; else a folder may have others only.

    Raises:
        UsageError: there are no images, some images outside class folders, or a class without training images.
    """
    train, validation, test = three_parts(lambda names: _existing(root, names))
    judges = train is None and test is not None
    if train is None and test is not None and training:
        raise UsageError(
            f"holds {test.name} but no train", where=str(root), hint="add train, or use class folders without either"
        )
    whole = root.resolve().name
    folders = (validation, test) if judges else (train or root,)
    files = [file for folder in folders if folder for file in _by_class(folder, whole)]
    if not files:
        check_kind(root, "a folder of images", (Kind.IMAGES, Kind.FOLDER))
        raise UsageError("holds no images", where=str(train or root), hint=WANTED)
    names = sorted({name for _, name in files}, key=lambda name: (natural_key(name), name))
    classes = {name: number for number, name in enumerate(names)}
    numbered = [] if judges else [(path, classes[name]) for path, name in files]
    outside = whole if list(classes) == [whole] else None
    return classes, (numbered, _labelled(validation, classes, outside), _labelled(test, classes, outside))


def image_names(folder: Path) -> list[str]:
    """The images in a folder, at any depth, relative to it, in natural order."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(filter(is_own, files), key=natural_key)


def _by_class(folder: Path, outside: str | None) -> list[tuple[str, str]]:
    """The images below a folder, in natural order, with the names of their classes.

    Args:
        outside: the class where no image is in a class folder; None refuses them.

    Raises:
        UsageError: there are images outside class folders.
    """
    files, _ = find_images_and_targets(str(folder), types=SUFFIXES)
    own = [(path, name) for path, _ in files if is_own(name := name_below(folder, path))]
    found = [(path, name.rpartition("/")[0].partition("/")[0]) for path, name in own]
    if outside and not any(name for _, name in found):
        return [(path, outside) for path, _ in found]
    if stray := sum(not name for _, name in found):
        raise UsageError(f"holds {stray} images outside class folders", where=str(folder), hint=WANTED)
    return found


def _existing(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _labelled(folder: Path | None, classes: dict[str, int], outside: str | None) -> list[Labelled] | None:
    """The files of a split, labelled by the classes of the training images."""
    if folder is None:
        return None
    files = _by_class(folder, outside)
    for _, name in files:
        if name not in classes:
            raise UsageError(
                f"class '{name}' has no training images", where=str(folder), hint="add some, or remove the class"
            )
    if not files:
        raise UsageError("holds no images", where=str(folder), hint="add some, or remove the folder")
    return [(path, classes[name]) for path, name in files]


def name_below(root: Path, path: str) -> str:
    """A path below `root`, relative to it."""
    return path.removeprefix(os.path.join(root, "")).replace(os.sep, "/")


def _empty(root: Path, train: Sequence[str]) -> Iterator[str]:
    """A note about class folders without images."""
    folder = _existing(root, TRAIN) or root
    used = {name_below(folder, path).partition("/")[0] for path in train}
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and is_own(path.name))
    if empty := [str(path) for path in folders if path.name not in used]:
        yield f"class folders without images get no class number: {some(empty)}"


def some(words: Sequence[str]) -> str:
    """The first few words, with "…" if there are more."""
    return ", ".join(words[:NAMED]) + (", …" if len(words) > NAMED else "")
