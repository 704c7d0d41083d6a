"""What every kind of data set gives: pictures by index, names of classes, and what to tell of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

Sample = tuple[Tensor, int | Tensor]  # (3, S, S) float32 normalised; class, or of several labels (classes,) float32
T = TypeVar("T")

TRAIN, VALIDATION, TEST = ("train", "training"), ("validation", "val", "valid", "eval", "evaluation"), ("test",)


@dataclass(frozen=True)
class Look:
    """How a model wants its images: side in pixels, mean and standard deviation per channel of values in [0, 1]."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Pictures(Dataset[Sample]):
    """Images of any size, decoded when they are read and made what a model wants by `transform`.

    By index, not as a stream: only so can a resumed run see exactly what an uninterrupted one does.
    """

    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        raise NotImplementedError

    def picture(self, index: int) -> tuple[Image.Image, int | Tensor]:
        """An RGB image and its class, or zeros and ones for its labels.

        Raises:
            UsageError: it cannot be read.
        """
        raise NotImplementedError

    @property
    def labels(self) -> Sequence[int | tuple[int, ...]]:
        """The class of every image, or its labels, known without decoding one."""
        raise NotImplementedError

    @property
    def contents(self) -> Sequence[str]:
        """What every image is: a digest that is the same wherever the image stands."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        image, label = self.picture(index)
        return self.transform(image), label

    def seen_through(self, transform: Callable[[Image.Image], Tensor]) -> Self:
        """The same images, through `transform`."""
        other = copy.copy(self)
        other.transform = transform
        return other


@dataclass(frozen=True)
class Unreadable:
    """An image file that is left out.

    Attributes:
        cause: why, in a few words.
    """

    path: str
    cause: str


@dataclass(frozen=True)
class Source:
    """A data set as it was found.

    Attributes:
        validation, test: None where they are to be held out of the training images.
        fingerprint: SHA-256 that changes when the data change.
        unreadable: files that were left out of all of them.
        notes: what the user should know of the data, one line each.
    """

    train: Pictures
    validation: Pictures | None
    test: Pictures | None
    class_names: tuple[str, ...]
    fingerprint: str
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images, of which no two share one.

    Attributes:
        class_names: by class number.
        fingerprint: SHA-256 that changes when the data change.
        augmented: reading a training image is random.
        unreadable: image files that are left out.
        notes: what the user should know of the data, one line each.
    """

    train: Dataset[Sample]
    validation: Dataset[Sample]
    test: Dataset[Sample]
    class_names: tuple[str, ...]
    fingerprint: str
    augmented: bool = False
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.class_names)

    def named(self, split: str) -> Dataset[Sample]:
        """`train`, `validation` or `test`."""
        found: Dataset[Sample] = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return found


def three_parts(find: Callable[[tuple[str, ...]], T | None]) -> tuple[T | None, T | None, T | None]:
    """The training, validation and test part, which go by several names; None where `find` finds none of those.

    A lone validation part is the test part, as in ImageNet.

    >>> three_parts(lambda names: {"training": "A", "val": "B"}.get(names[1]) if len(names) > 1 else None)
    ('A', None, 'B')
    """
    train, validation, test = find(TRAIN), find(VALIDATION), find(TEST)
    return (train, None, validation) if test is None else (train, validation, test)
