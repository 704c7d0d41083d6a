"""WebDataset shards (`wds/PATH`): tar files whose members `KEY.jpg` and `KEY.cls` are an image and its class.

The shards of a split are those listed in `_info.json` (as timm writes it: `{"splits": {"train": {"filenames":
[...]}}}`), else `train/*.tar` or `train-*.tar`, and likewise for `val` and `test`; else all `*.tar` are training
images. Class names come from `class_names` in `_info.json` or from `classes.txt`, one per line.

An index of the tar headers gives random access to the images; the library's own reader is a stream, which cannot be
resumed at a given step.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from superlora_cli.data.images import open_rgb
from superlora_cli.data.source import Pictures, Source, three_parts
from superlora_cli.errors import UsageError

IMAGES = ("jpg", "jpeg", "png", "webp")
INFO, CLASSES = ("_info.json", "info.json"), "classes.txt"


class Entry(NamedTuple):
    """An image in a shard: where its bytes are, and its class."""

    shard: str
    key: str
    offset: int
    size: int
    label: int


class ShardImages(Pictures):
    """Images inside uncompressed tar files."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def picture(self, index: int) -> tuple[Image.Image, int]:
        entry = self.entries[index]
        return open_rgb(io.BytesIO(_bytes(entry)), name=f"{entry.shard}: {entry.key}"), entry.label

    @property
    def labels(self) -> Sequence[int]:
        return [entry.label for entry in self.entries]

    @cached_property
    def contents(self) -> Sequence[str]:
        return [hashlib.sha256(_bytes(entry)).hexdigest() for entry in self.entries]


def _bytes(entry: Entry) -> bytes:
    """The image file inside a shard."""
    try:
        with open(entry.shard, "rb") as file:
            file.seek(entry.offset)
            return file.read(entry.size)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=entry.shard) from None


def shard_classes(root: Path) -> tuple[str, ...] | None:
    """The names of the classes; None if no file next to the shards has them.

    Raises:
        UsageError: there is no such folder, or a file in it cannot be parsed.
    """
    if not root.is_dir():
        raise UsageError("no such folder of shards", where=str(root), hint="wds/PATH, with PATH/train/*.tar")
    names = _info(root).get("class_names")
    if names is None and (root / CLASSES).is_file():
        names = (root / CLASSES).read_text(encoding="utf-8").splitlines()
    return tuple(str(name) for name in names) if names else None


def read_shards(root: Path, *, classes: int | None) -> Source:
    """All images of the shards in a folder.

    Args:
        root: the folder.
        classes: number of classes, if no file has their names.

    Raises:
        UsageError: there are no shards, they cannot be read, a sample has no class, or the number of classes is
            unknown.
    """
    names = shard_classes(root) or tuple(map(str, range(classes or 0)))
    if not names:
        hint = f"set it, or list the class names in {root / CLASSES}, one per line"
        raise UsageError("the number of classes is unknown", where="data.num_classes", hint=hint)
    train, validation, test = three_parts(lambda split: _shards(root, split))
    if train is None and test is None:
        train = sorted(root.glob("*.tar"))
    if not train:
        raise UsageError("holds no training shards", where=str(root), hint="expected train/*.tar or an _info.json")
    digest = hashlib.sha256()
    parts = []
    for shards in (train, validation, test):
        entries = [entry for shard in shards or [] for entry in _entries(shard, len(names))]
        for shard, key, offset, size, label in entries:
            name = Path(shard).relative_to(root).as_posix()
            digest.update(f"{name}\0{key}\0{offset}\0{size}\0{label}\0".encode(errors="surrogateescape"))
        parts.append(ShardImages(entries) if shards is not None else None)
    images, held_out, tested = parts
    assert images is not None
    return Source(images, held_out, tested, names, digest.hexdigest())


def _info(root: Path) -> dict[str, Any]:
    path = next((root / name for name in INFO if (root / name).is_file()), None)
    if path is None:
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        return dict(info)
    except (ValueError, TypeError) as error:
        raise UsageError(f"not a JSON object: {error}", where=str(path), hint="fix or remove it") from None


def _shards(root: Path, names: Sequence[str]) -> list[Path] | None:
    """The shards of the split with one of `names`."""
    splits = _info(root).get("splits", {})
    for name in names:
        if name in splits:
            return [root / file for file in splits[name].get("filenames", [])]
        if found := sorted(root.glob(f"{name}/*.tar")) or sorted(root.glob(f"{name}-*.tar")):
            return found
    return None


def _entries(shard: Path, classes: int) -> list[Entry]:
    """The images in a shard, in order."""
    samples: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, bytes] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                base, _, suffix = file.partition(".")
                key = f"{folder}/{base}".lstrip("/")
                if suffix.lower() == "cls":
                    labels[key] = tar.extractfile(member).read()  # type: ignore[union-attr]
                elif suffix.lower() in IMAGES:
                    samples[key] = member
    except (tarfile.TarError, OSError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(shard), hint="expected an uncompressed tar") from None
    return [
        Entry(str(shard), key, member.offset_data, member.size, _label(labels.get(key), classes, f"{shard}: {key}"))
        for key, member in samples.items()
    ]


def _label(content: bytes | None, classes: int, where: str) -> int:
    if content is None:
        raise UsageError("the image has no class", where=where, hint="add KEY.cls with its number")
    try:
        label = int(content)
    except ValueError:
        raise UsageError(f"not a class: {content[:20]!r}", where=where, hint="expected a number") from None
    if not 0 <= label < classes:
        raise UsageError(f"class {label}, but there are {classes} classes", where=where, hint="the first is 0")
    return label
