"""Sets of images to compare: a folder of images, or a split of a data set; uint8, one size, read when needed.

Nothing is held in memory except by the data set itself: a set is read once for its digest, and once more if its
features are not cached.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.utils import natural_key
from torch import Tensor
from torch.utils.data import Dataset

from superlora_cli.data.embedded import Images
from superlora_cli.data.images import SUFFIXES, cropped, is_own, open_rgb
from superlora_cli.data.known import kind_of, nearest_set
from superlora_cli.data.scan import scan
from superlora_cli.data.source import Indexed, Look
from superlora_cli.data.splits import DATA_SEED, load_splits
from superlora_cli.errors import UsageError, did_you_mean
from superlora_cli.generation.folder import IMAGES, MANIFEST
from superlora_cli.kinds import check_kind

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import DataSection

TABLE = "manifest.csv"  # columns `file` and `class`, if neither `superlora generate` nor the file names give the class
NAMED = re.compile(r"\d+_(.+)")  # as `superlora generate` names an image: 00017_3.png is the 18th, of class 3
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageSet(Dataset[Tensor]):
    """Images as uint8 (3, H, W) by index, all of one size.

    Attributes:
        name: a folder, or a name such as `digits:test`.
        images: files, or a data set of (3, S, S) float32 in [0, 1].
        classes: the class of every image, by name; None if unknown.
        prompts: the prompt of every image; None if it was not made from one.
        side: height and width that files are cropped and resized to; None leaves them as they are.
    """

    name: str
    images: Sequence[Path] | Indexed
    classes: tuple[str, ...] | None
    prompts: tuple[str, ...] | None = None
    side: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        item: Any = self.images[index]
        if isinstance(item, Path) and self.side is not None:
            seen = cropped(open_rgb(item), (self.side[1], self.side[0]))
            return ((seen + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        if isinstance(item, Path):
            return torch.from_numpy(np.array(open_rgb(item))).permute(2, 0, 1).contiguous()
        return item[0].mul(255).round().clamp(0, 255).to(torch.uint8)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first image in pixels."""
        _, height, width = self[0].shape
        return height, width

    def digest(self) -> str:
        """SHA-256 of the pixels of all images, in order.

        Raises:
            UsageError: an image has another size than the first.
        """
        size, sha256 = self.size, hashlib.sha256()
        sha256.update(f"uint8 {len(self)} 3 {size[0]} {size[1]}".encode())
        for index in range(len(self)):
            image = self[index]
            if (found := (image.shape[1], image.shape[2])) != size:
                message = f"{in_words(found)} pixels, but the first image has {in_words(size)}"
                raise UsageError(message, where=str(self.images[index]), hint="all images must have the same size")
            sha256.update(image.numpy().tobytes())
        return sha256.hexdigest()


def in_words(size: tuple[int, int]) -> str:
    """A size as width × height.

    >>> in_words((16, 24))
    '24×16'
    """
    return f"{size[1]}×{size[0]}"


def holds_images(folder: Path) -> bool:
    """Whether there are images directly in a folder."""
    return folder.is_dir() and any(_names(folder))


def _names(folder: Path) -> Iterator[str]:
    """The names of the images directly in a folder."""
    return (path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and is_own(path.name))


def read_images(folder: Path) -> ImageSet:
    """The images directly in a folder, in natural order of their names, or those that `superlora generate` wrote there.

    Raises:
        UsageError: there is no folder or no image, or an image cannot be read (metrics without it would be misleading).
    """
    if not folder.is_dir():
        check_kind(folder, "a folder of images", ())
        raise UsageError("no such folder", where=str(folder), hint="give a folder of images")
    if (folder / MANIFEST).is_file() and (folder / IMAGES).is_dir():
        folder /= IMAGES
    names = sorted(_names(folder), key=natural_key)
    if not names:
        raise UsageError("holds no images", where=str(folder), hint=f"files such as {', '.join(SUFFIXES[:6])}")
    bad = [(name, file.cause) for name, file in scan(folder, names).items() if file.cause is not None]
    if bad:
        others = f" (and so {len(bad)} of {len(names)} files)" if len(bad) > 1 else ""
        message = f"cannot be read: {bad[0][1]}{others}"
        raise UsageError(message, where=str(folder / bad[0][0]), hint="replace or remove it")
    return ImageSet(str(folder), [folder / name for name in names], *_shown(folder, names))


def read_split(data: DataSection, split: str, size: tuple[int, int]) -> ImageSet:
    """A split of a data set, as a model with that image size sees it in evaluation.

    Args:
        size: height and width of the images it is compared with.

    Raises:
        UsageError: the data are unknown or missing, or the images are not square.
    """
    name = f"{data.name}:{split}"
    if size[0] != size[1]:
        message = f"its images become square, but the others are {in_words(size)}"
        raise UsageError(message, where=name, hint="use a folder of images of that size")
    look = Look(size[0], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    rendered = {} if split == "train" else {"train_images": 1}  # the training images are not used
    splits = load_splits(data.model_copy(update={"augment": "none", **rendered}), look, seed=DATA_SEED)
    images: Any = splits.named(split)
    if not len(images):
        raise UsageError(f"the {split} split is empty", where=name, hint="use another split")
    labels = images.labels.tolist() if isinstance(images, Images) else None
    classes = None if labels is None else tuple(splits.class_names[label] for label in labels)
    return ImageSet(name, images, classes)


def parse_reference(text: str) -> tuple[str, str] | Path:
    """The value of `--against`: data set and split, or a folder that holds images directly.

    Raises:
        UsageError: it is neither.

    >>> parse_reference("torch/svhn:train"), parse_reference("digits")
    (('torch/svhn', 'train'), ('digits', 'test'))
    """
    if holds_images(Path(text)):
        return Path(text)
    if Path(text).is_file():
        check_kind(Path(text), "a data set or a folder of images", ())
    name, colon, split = text.rpartition(":") if ":" in text else (text, "", "test")
    if split not in PARTS:
        hint = did_you_mean(split, PARTS) or f"one of {', '.join(PARTS)}"
        raise UsageError(f"unknown split '{split}'", where=f"--against {text}", hint=hint)
    if not colon and Path(name).is_dir() and not any(path.is_dir() for path in Path(name).iterdir()):
        raise UsageError("holds no images", where=name, hint="a folder of images, or a data set such as digits:test")
    if "/" not in name and kind_of(name) is None:
        hint = nearest_set(name) or "digits:test, torch/svhn:test, or a folder of images"
        raise UsageError(f"unknown data set '{name}'", where=f"--against {text}", hint=hint)
    return name, split


def _shown(folder: Path, names: Sequence[str]) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Classes and prompts of the files: from a manifest, else from the file names; None if one is unknown."""
    listed = _generated(folder.parent / MANIFEST, names) if folder.name == IMAGES else _table(folder / TABLE)
    if listed and all(isinstance(shown, Mapping) for shown in listed.values()):
        return None, _all(str(listed[name]["prompt"]) if name in listed else None for name in names)
    return _all(listed.get(name) if listed else _from_name(name) for name in names), None


def _all(values: Iterable[str | None]) -> tuple[str, ...] | None:
    found = tuple(values)
    return None if None in found else tuple(map(str, found))


def _from_name(name: str) -> str | None:
    match = NAMED.fullmatch(Path(name).stem)
    return match[1] if match else None


def _generated(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """File → class, or prompt, seed and scale, from the manifest of `superlora generate`; {} if there is none.

    Raises:
        UsageError: images are missing, because it was interrupted or they were removed.
    """
    try:
        listed = dict(json.loads(path.read_text(encoding="utf-8"))["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if missing := len(listed.keys() - set(names)):
        hint = f"generate them again with --force, or remove {path.name} to measure the existing ones"
        raise UsageError(f"{missing} of {len(listed)} images are missing", where=str(path.parent), hint=hint)
    return listed


def _table(path: Path) -> dict[str, Any]:
    """File → class; {} if there is no table.

    Raises:
        UsageError: it has other columns.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["file"]: row["class"] for row in csv.DictReader(file)}
    except (KeyError, ValueError, csv.Error):
        raise UsageError(
            "not a table of files and classes", where=str(path), hint="expected the columns file,class"
        ) from None
