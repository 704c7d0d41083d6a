"""Images with captions, for text-to-image: from a folder, or of an embedded set.

In a folder, the caption of `cat.png` is in `cat.txt` or `cat.caption` beside it, or in a table at the top of the
folder, `metadata.jsonl` or `metadata.csv`, with the columns `file_name` and `text`. With the template `data.caption`,
an image's own text ("{text}") or its folder's name ("{class}") is a part of a longer one, or all images have the same.
Images that cannot be read, and those without a caption where one is needed, are left out and reported.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from superlora_cli.data.folder import image_names, some
from superlora_cli.data.holding_out import three_parts_of
from superlora_cli.data.images import open_rgb, size_of
from superlora_cli.data.scan import scan
from superlora_cli.data.source import Pictures, Splits, Unreadable, three_parts
from superlora_cli.errors import UsageError
from superlora_cli.kinds import Kind, check_kind

TABLES = ("metadata.jsonl", "metadata.csv")
BESIDE = (".txt", ".caption")  # files with an image's caption; the second, of kohya's scripts, if there is no first
NAME, TEXTS = "file_name", ("text", "caption", "prompt")  # columns; of the second, the first that there is
FIELDS = ("text", "class")
NO_CAPTION, NOT_UTF8 = "no caption", "its caption is not UTF-8"


class CaptionedImages(Pictures):
    """Images of any size with their captions, and a digest of each.

    Attributes:
        names: of the files, relative to their folder.
    """

    def __init__(
        self, images: Sequence[str | Tensor], texts: Sequence[str], names: Sequence[str], contents: Sequence[str]
    ) -> None:
        self.images, self.texts, self.names, self._contents = images, texts, names, contents

    def __len__(self) -> int:
        return len(self.images)

    def picture(self, index: int) -> tuple[Image.Image, int]:
        image = self.images[index]
        return open_rgb(image) if isinstance(image, str) else to_pil_image(image), 0

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels, as the image is shown."""
        image = self.images[index]
        return size_of(image) if isinstance(image, str) else (image.shape[2], image.shape[1])

    @property
    def labels(self) -> Sequence[int]:
        return [0] * len(self)

    @property
    def contents(self) -> Sequence[str]:
        return self._contents

    def part(self, indices: Sequence[int]) -> CaptionedImages:
        """Some of the images."""
        images, texts, names, contents = (
            [of[index] for index in indices] for of in (self.images, self.texts, self.names, self._contents)
        )
        return CaptionedImages(images, texts, names, contents)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Captioned:
    """A set of images with captions, as found; as `source.Source`."""

    train: CaptionedImages
    validation: CaptionedImages | None
    test: CaptionedImages | None
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()


def check_template(template: str | None) -> tuple[str, ...]:
    """The fields of a template for captions.

    Raises:
        UsageError: it has others than `{text}` and `{class}`.

    >>> check_template("a photo of sks {class}, {text}")
    ('class', 'text')
    """
    try:
        parts = [part for part in Formatter().parse("{text}" if template is None else template) if part[1] is not None]
    except ValueError as error:
        raise UsageError(f"not a template: {error}", where="data.caption", hint="a {class}, {text}") from None
    for _, name, form, conversion in parts:
        if name not in FIELDS or form or conversion:
            more = (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            hint = "{text} is the image's own caption, {class} the name of its folder"
            raise UsageError(f"unknown field '{{{name}{more}}}'", where="data.caption", hint=hint)
    return tuple(str(name) for _, name, _, _ in parts)


def captioned(template: str | None, text: str, label: str) -> str:
    """A caption from the image's own text and the name of its class."""
    return " ".join((template or "{text}").format(**{"text": text, "class": label}).split())


def in_memory(images: Tensor, texts: Sequence[str], name: str) -> CaptionedImages:
    """Images (n, 3, S, S) uint8 that are part of superlora."""
    contents = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
    return CaptionedImages(list(images), texts, [f"{name}/{index}" for index in range(len(images))], contents)


def read_captioned_folder(root: Path, template: str | None) -> Captioned:
    """The images of a folder, or of its parts `train`, `validation` and `test`.

    Raises:
        UsageError: there are no images with captions, or a table cannot be parsed.
    """
    fields = check_template(template)
    parts = three_parts(lambda names: next((root / name for name in names if (root / name).is_dir()), None))
    if parts[0] is None:
        parts = (root, None, None)
    bad: list[Unreadable] = []
    notes: list[str] = []

    def read(folder: Path) -> CaptionedImages:
        found, left = _read(folder, template, fields, notes)
        bad.extend(left)
        if not found:
            if not left:
                check_kind(folder, "a folder of images", (Kind.IMAGES, Kind.FOLDER))
            cause = left[-1].cause if left else "it holds no images"
            write = "write the caption of cat.png into cat.txt, or give data.caption without {text}"
            hint = write if cause == NO_CAPTION else None
            raise UsageError(f"no image can be used: {cause}", where=left[-1].path if left else str(folder), hint=hint)
        return found

    train, validation, test = (None if part is None else read(part) for part in parts)
    assert train is not None
    total = len(bad) + sum(len(part) for part in (train, validation, test) if part)
    for cause in sorted({file.cause for file in bad}):
        paths = [file.path for file in bad if file.cause == cause]
        notes.append(f"left out {len(paths):,} of {total:,} images ({cause}): {some(paths)}")
    return Captioned(train, validation, test, tuple(bad), tuple(notes))


def held_out(found: Captioned, share: float, rule: str | None, seed: int) -> Splits:
    """Three splits: parts that are missing are held out of the training images, if the share is not 0."""
    parts, notes = three_parts_of(found, share, rule, seed, classes={}, called="images")
    digest = hashlib.sha256()
    for images in (found.train, found.validation, found.test):
        for name, content, text in zip(images.names, images.contents, images.texts, strict=True) if images else ():
            digest.update(f"{name}\0{content}\0{text}\0".encode(errors="surrogateescape"))
    splits = Splits(*parts, (), digest.hexdigest(), unreadable=found.unreadable, notes=(*found.notes, *notes))
    whole = replace(splits, test=found.train, notes=found.notes)
    return replace(splits, whole=whole if found.test is None else None)


def _read(
    root: Path, template: str | None, fields: Sequence[str], notes: list[str]
) -> tuple[CaptionedImages, list[Unreadable]]:
    """The images below a folder, and those that are left out."""
    names = image_names(root)
    table = _table(root) if "text" in fields else None
    known = set(names)
    if table is not None and (gone := [name for name in table if name not in known]):
        notes.append(f"{len(gone):,} lines of the table name no image: {some(gone)}")
    checked, kept, bad = scan(root, names), [], []
    for name in names:
        path, cause = root / name, checked[name].cause
        text = ""
        if cause is None and "text" in fields:
            text, cause = _text(path, name, table)
        if cause is None and "class" in fields and "/" not in name:
            cause = "in no folder that names its class"
        caption = captioned(template, text, Path(name).parent.name)
        if cause is None and not _is_text(caption):
            cause = NOT_UTF8
        if cause is None:
            kept.append((str(path), caption, name, checked[name].content))
        else:
            bad.append(Unreadable(str(path), cause))
    columns: tuple[Any, ...] = tuple(map(list, zip(*kept, strict=True))) or ([], [], [], [])
    return CaptionedImages(*columns), bad


def _text(path: Path, name: str, table: Mapping[str, str] | None) -> tuple[str, str | None]:
    """An image's own caption, and why it has none."""
    if table is not None:
        return (table[name], None) if table.get(name, "").strip() else ("", NO_CAPTION)
    text, other = (path.with_suffix(suffix) for suffix in BESIDE)
    file = other if os.path.exists(other) and not os.path.lexists(text) else text
    if file.exists() and not file.is_file():
        return "", "its caption is a folder, a pipe or a device"  # reading a pipe would block forever
    try:
        caption = file.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        return "", NO_CAPTION
    except UnicodeDecodeError:
        return "", NOT_UTF8
    except OSError as error:
        return "", f"its caption cannot be read: {error.strerror}"
    return (caption, None) if caption else ("", NO_CAPTION)


def _is_text(caption: str) -> bool:
    """Whether it can be encoded: names of files, and escapes in JSON, may be halves of characters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in caption)


def _table(root: Path) -> dict[str, str] | None:
    """Captions by file name, from a table at the top of a folder; None if there is none."""
    file = next((root / name for name in TABLES if (root / name).is_file()), None)
    if file is None:
        return None
    hint = f"every line has {NAME} and {TEXTS[0]}"
    try:
        lines = file.read_text(encoding="utf-8-sig")
        rows: Iterator[dict[str, Any]] = (_json_rows if file.suffix == ".jsonl" else _csv_rows)(lines)
        found: dict[str, str] = {}
        for number, row in enumerate(rows, 1):
            where = f"{file}: row {number}"
            column = next((name for name in TEXTS if row.get(name) is not None), None)
            if not isinstance(row.get(NAME), str) or column is None or not isinstance(row[column], str):
                raise UsageError(f"no {NAME}, or no {TEXTS[0]}", where=where, hint=hint)
            if row[NAME] in found:
                raise UsageError(f"'{row[NAME]}' is listed twice", where=where, hint="one row per image")
            found[row[NAME]] = row[column]
    except (OSError, csv.Error, ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"cannot be read as a table: {error}", where=str(file), hint=hint) from None
    return found


def _json_rows(text: str) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in text.split("\n") if line.strip())


def _csv_rows(text: str) -> Iterator[dict[str, Any]]:
    return iter(csv.DictReader(io.StringIO(text)))
