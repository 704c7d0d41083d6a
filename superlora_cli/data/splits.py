"""The three splits of a data set, ready to be batched: embedded sets, and everything timm's factory reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Subset

from superlora_cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import DataSection

Sample = tuple[Tensor, int]  # (3, S, S) float32 normalised, class

CLASSES = {"digits": 10, "glyphs": 10, "torch/cifar10": 10, "torch/cifar100": 100, "torch/mnist": 10, "torch/svhn": 10}
GLYPH_IMAGES = (20_000, 2_000)  # training, and validation and test each, where a recipe says nothing


@dataclass(frozen=True)
class Look:
    """How a model wants its images: side in pixels, mean and standard deviation per channel of values in [0, 1]."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images, of which no two share one.

    Attributes:
        fingerprint: SHA-256 that changes when the data change.
        augmented: reading a training image is random.
    """

    train: Dataset[Sample]
    validation: Dataset[Sample]
    test: Dataset[Sample]
    classes: int
    fingerprint: str
    augmented: bool = False

    def named(self, split: str) -> Dataset[Sample]:
        """`train`, `validation` or `test`."""
        found: Dataset[Sample] = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return found


class Images(Dataset[Sample]):
    """Images in memory: uint8 (n, 3, S, S) and labels (n,), normalised when they are read.

    `shift` moves an image by up to that many pixels in each direction, at random, repeating its border.
    """

    def __init__(self, images: Tensor, labels: Tensor, look: Look, *, shift: int = 0) -> None:
        self.images, self.labels, self.shift = images, labels, shift
        self.mean = torch.tensor(look.mean).view(3, 1, 1) * 255
        self.std = torch.tensor(look.std).view(3, 1, 1) * 255

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        image = (self.images[index] - self.mean) / self.std
        if self.shift:
            side, pad = image.shape[-1], (self.shift,) * 4
            top, left = torch.randint(2 * self.shift + 1, (2,)).tolist()
            image = functional.pad(image, pad, mode="replicate")[:, top : top + side, left : left + side]
        return image, int(self.labels[index])


def class_count(section: DataSection) -> int | None:
    """The number of classes, as far as it is known without reading the images."""
    known = CLASSES.get(section.name)
    if known is None and Path(section.name).is_dir():
        from superlora_cli.data.folder import read_folder

        known = len(read_folder(Path(section.name))[0])
    return known or section.num_classes


def load_splits(section: DataSection, look: Look, *, seed: int) -> Splits:
    """Read or render the data that a recipe names.

    Raises:
        UsageError: an unknown name, or data that are not there; says how to provide them.
    """
    if section.name == "digits":
        from superlora_cli.data.digits import load_digits_split

        return _in_memory(partial(load_digits_split, image_size=look.size), look, section.augment)
    if section.name == "glyphs":
        from superlora_cli.data.glyphs import render_glyphs

        train, held_out = section.train_images or GLYPH_IMAGES[0], section.eval_images or GLYPH_IMAGES[1]

        def render(split: Any) -> tuple[Tensor, Tensor]:
            return render_glyphs(split, train if split == "train" else held_out, look.size, seed=seed)

        return _in_memory(render, look, section.augment)
    return _from_timm(section, look, seed)


def _in_memory(load: Any, look: Look, augment: str | None) -> Splits:
    arrays = {split: load(split) for split in ("train", "validation", "test")}
    digest = hashlib.sha256()
    for images, labels in arrays.values():
        digest.update(images.numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    shift = {"train": 1 if augment == "shift" else 0}  # pixels
    sets = {
        split: Images(images, labels, look, shift=shift.get(split, 0)) for split, (images, labels) in arrays.items()
    }
    train, validation, test = (sets[split] for split in ("train", "validation", "test"))
    return Splits(train, validation, test, 10, digest.hexdigest(), augmented=bool(shift["train"]))


def _from_timm(section: DataSection, look: Look, seed: int) -> Splits:
    """torchvision sets, folders and Hugging Face sets, by timm's dataset factory and transforms."""
    from timm.data import create_dataset, create_transform

    is_folder = Path(section.name).is_dir()
    if not is_folder and "/" not in section.name:
        hint = did_you_mean(section.name, CLASSES) or "a folder of images, or a name like torch/cifar100"
        raise UsageError(f"unknown data set '{section.name}'", where="data.name", hint=hint)
    transform = partial(create_transform, input_size=(3, look.size, look.size), mean=look.mean, std=look.std)
    training = transform(is_training=True, auto_augment=None, color_jitter=0.0, re_prob=0.0)
    if section.augment == "none":
        training = transform(is_training=False, crop_pct=1.0, crop_mode="squash")
    plain = transform(is_training=False, crop_pct=1.0, crop_mode="squash")
    given: list[Any]  # validation and test; None is held out of the training images
    if is_folder:
        from superlora_cli.data.folder import FolderImages, read_folder

        _, files, *others = read_folder(Path(section.name))
        train, held_out = FolderImages(files, training), FolderImages(files, plain)
        given = [None if part is None else FolderImages(part, plain) for part in others]
    else:
        try:
            make = partial(create_dataset, section.name, root=section.root, download=section.download)
            train = make(split="train", is_training=True, transform=training)
            held_out = make(split="train", is_training=True, transform=plain)
            given = [None, make(split="validation", transform=plain)]
        except (RuntimeError, OSError, AssertionError, ValueError) as error:
            cause = str(error).strip().splitlines()[0]
            hint = f"put the data under '{section.root}', or set data.download=true where there is a network"
            raise UsageError(f"cannot read data set '{section.name}': {cause}", where="data", hint=hint) from None
    order = np.random.RandomState(seed).permutation(len(train)).tolist()
    cut = round(len(order) * section.validation)
    parts: list[Any] = []
    for images in given:
        parts.append(_part(held_out, order[:cut]) if images is None else images)
        order = order[cut:] if images is None else order
    validation, test = parts
    classes = class_count(section)
    if classes is None:
        raise UsageError("the number of classes is not known", where="data.num_classes", hint="set it")
    fingerprint = hashlib.sha256(f"{section.name} {len(train)} {len(test)}".encode()).hexdigest()
    return Splits(_part(train, order), validation, test, classes, fingerprint, augmented=section.augment != "none")


def _part(images: Any, indices: Sequence[int]) -> Dataset[Sample]:
    return Subset(images, sorted(indices))
