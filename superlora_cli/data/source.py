"""What every kind of data set provides: images by index, class names, and notes for the user."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

Sample = tuple[Tensor, int | Tensor]  # (3, S, S) float32, normalised; class, or (classes,) float32 for several labels
T = TypeVar("T")

TRAIN, TEST = ("train", "training", "train800"), ("test",)  # `train800` and `val200`: of VTAB-1k
VALIDATION = ("validation", "val", "valid", "dev", "eval", "evaluation", "val200")


@dataclass(frozen=True)
class Look:
    """The image format that a model expects: size in pixels, and mean and standard deviation per channel in [0, 1]."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments of timm's `create_transform` for evaluation: the whole image, squashed to a square."""
        size = (3, self.size, self.size)
        return {"input_size": size, "mean": self.mean, "std": self.std, "crop_pct": 1.0, "crop_mode": "squash"}


class Pictures(Dataset[Sample]):
    """Images of any size, decoded when they are read and turned into a model's input by `transform`.

    They are read by index, not as a stream, so that a resumed run sees exactly what an uninterrupted one does.
    """

    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        raise NotImplementedError

    def picture(self, index: int) -> tuple[Image.Image, int | Tensor]:
        """An RGB image and its class, or its labels as zeros and ones.

        Raises:
            UsageError: it cannot be read.
        """
        raise NotImplementedError

    @property
    def labels(self) -> Sequence[int | tuple[int, ...]]:
        """The class or the labels of every image, without decoding any."""
        raise NotImplementedError

    @property
    def contents(self) -> Sequence[str]:
        """A digest of every image, independent of its position."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        image, label = self.picture(index)
        return self.transform(image), label

    def seen_through(self, transform: Callable[[Image.Image], Tensor]) -> Self:
        """The same images with another `transform`."""
        other = copy.copy(self)
        other.transform = transform
        return other


@dataclass(frozen=True)
class Unreadable:
    """An image file that is left out.

    Attributes:
        cause: the reason, in a few words.
    """

    path: str
    cause: str


@dataclass(frozen=True)
class Source:
    """A data set as found.

    Attributes:
        validation, test: None if they should be held out of the training images.
        fingerprint: SHA-256 by which changed data are recognised, wherever they lie: of names, sizes and labels of
            image files; of the places of images in shards, their sizes and labels; of all pixels and labels of embedded
            sets; of the labels of Hugging Face sets, in order; of the name and numbers of images of torchvision's.
        unreadable: image files that are left out.
        notes: what the user should know about the data, one line each.
    """

    train: Pictures
    validation: Pictures | None
    test: Pictures | None
    class_names: tuple[str, ...]
    fingerprint: str
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()


class Indexed(Protocol):
    """Samples, or texts, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images, or texts.

    They do not overlap, with one exception: where no texts, or no images with captions, are held out, an empty split is
    the training split again, and a note says so.

    Attributes:
        class_names: by class number.
        fingerprint: that of the `Source`; of texts, and of images with captions, SHA-256 of their whole content.
        augmented: whether reading a training image is random.
        unreadable: image files that are left out.
        notes: what the user should know about the data, one line each.
        whole: the same data with all of them in the test split, if that was held out; None if they have a test part.
    """

    train: Indexed
    validation: Indexed
    test: Indexed
    class_names: tuple[str, ...]
    fingerprint: str
    augmented: bool = False
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()
    whole: Splits | None = None

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def named(self, split: str) -> Indexed:
        """`train`, `validation` or `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


def three_parts(find: Callable[[tuple[str, ...]], T | None]) -> tuple[T | None, T | None, T | None]:
    """The training, validation and test part, each of which has several possible names; None if `find` finds none.

    A validation part without a test part becomes the test part, as in ImageNet.

    >>> three_parts(lambda names: {"training": "A", "val": "B"}.get(names[1]) if len(names) > 1 else None)
    ('A', None, 'B')
    """
    train, validation, test = find(TRAIN), find(VALIDATION), find(TEST)
    return (train, None, validation) if test is None else (train, validation, test)
