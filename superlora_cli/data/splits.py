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
    """Images in memory: uint8 (n, 3, S, S) and labels (n,), normalised when they are read."""

    def __init__(self, images: Tensor, labels: Tensor, look: Look) -> None:
        self.images, self.labels = images, labels
        self.mean = torch.tensor(look.mean).view(3, 1, 1) * 255
        self.std = torch.tensor(look.std).view(3, 1, 1) * 255

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return (self.images[index] - self.mean) / self.std, int(self.labels[index])


def class_count(section: DataSection) -> int | None:
    """The number of classes as far as it is known without reading the data."""
    return section.num_classes or CLASSES.get(section.name)


def load_splits(section: DataSection, look: Look, *, seed: int) -> Splits:
    """Read or render the data that a recipe names.

    Raises:
        UsageError: an unknown name, or data that are not there; says how to provide them.
    """
    if section.name == "digits":
        from superlora_cli.data.digits import load_digits_split

        return _in_memory(partial(load_digits_split, image_size=look.size), look)
    if section.name == "glyphs":
        from superlora_cli.data.glyphs import render_glyphs

        train, held_out = section.train_images or GLYPH_IMAGES[0], section.eval_images or GLYPH_IMAGES[1]

        def render(split: Any) -> tuple[Tensor, Tensor]:
            return render_glyphs(split, train if split == "train" else held_out, look.size, seed=seed)

        return _in_memory(render, look)
    return _from_timm(section, look, seed)


def _in_memory(load: Any, look: Look) -> Splits:
    arrays = {split: load(split) for split in ("train", "validation", "test")}
    digest = hashlib.sha256()
    for images, labels in arrays.values():
        digest.update(images.numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    sets = {split: Images(images, labels, look) for split, (images, labels) in arrays.items()}
    return Splits(sets["train"], sets["validation"], sets["test"], 10, digest.hexdigest())


def _from_timm(section: DataSection, look: Look, seed: int) -> Splits:
    """torchvision sets, folders and Hugging Face sets, by timm's dataset factory and transforms."""
    from timm.data import create_dataset, create_transform

    is_folder = Path(section.name).is_dir()
    if not is_folder and "/" not in section.name:
        hint = did_you_mean(section.name, CLASSES) or "a folder of images, or a name like torch/cifar100"
        raise UsageError(f"unknown data set '{section.name}'", where="data.name", hint=hint)
    name, root = ("", section.name) if is_folder else (section.name, section.root)
    transform = partial(create_transform, input_size=(3, look.size, look.size), mean=look.mean, std=look.std)
    training = transform(is_training=True, auto_augment=None, color_jitter=0.0, re_prob=0.0)
    if section.augment == "none":
        training = transform(is_training=False, crop_pct=1.0, crop_mode="squash")
    plain = transform(is_training=False, crop_pct=1.0, crop_mode="squash")
    try:
        make = partial(create_dataset, name, root=root, download=section.download)
        train = make(split="train", is_training=True, transform=training)
        held_out = make(split="train", is_training=True, transform=plain)
        test = make(split="validation", transform=plain)
    except (RuntimeError, OSError, AssertionError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        hint = f"put the data under '{root}', or set data.download=true where there is a network"
        raise UsageError(f"cannot read data set '{section.name}': {cause}", where="data", hint=hint) from None
    order = np.random.RandomState(seed).permutation(len(train)).tolist()
    cut = round(len(order) * section.validation)
    classes = class_count(section) or len(getattr(train.reader, "class_to_idx", {})) or None
    if classes is None:
        raise UsageError("the number of classes is not known", where="data.num_classes", hint="set it")
    fingerprint = hashlib.sha256(f"{section.name} {len(train)} {len(test)}".encode()).hexdigest()
    parts = _part(train, order[cut:]), _part(held_out, order[:cut]), test
    return Splits(*parts, classes, fingerprint, augmented=section.augment != "none")


def _part(images: Any, indices: Sequence[int]) -> Dataset[Sample]:
    return Subset(images, sorted(indices))
