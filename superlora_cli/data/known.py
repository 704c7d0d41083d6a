"""The kinds of data sets that a recipe's `data.name` can mean, one object each, asked in this order.

What reads a set is imported when it is read: listing and counting need no torch. A new kind is one object:
`SOURCES.add("toy", Toy())`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from superlora_cli.errors import UsageError, did_you_mean
from superlora_cli.table import Table, load_extensions

if TYPE_CHECKING:
    from superlora_cli.data.source import Look, Source, Splits
    from superlora_cli.recipe.schema import DataSection

DIGITS = tuple("0123456789")
TORCHVISION = {  # sets by name, and how many classes they have
    "torch/cifar10": 10,
    "torch/cifar100": 100,
    "torch/mnist": 10,
    "torch/svhn": 10,
    "torch/kmnist": 10,
    "torch/fashion_mnist": 10,
    "torch/qmnist": 10,
    "torch/imagenet": 1000,
    "torch/places365": 365,
    "torch/inaturalist": 10_000,
}


class DataKind(ABC):
    """A kind of data sets.

    Attributes:
        names: its sets, where it has only certain ones.
        example: one of its names, for the hint where a name is unknown.
        embedded: its sets are part of superlora: always at hand, in splits that never change.
        configurations: a set may have several, of which `data.config` names one.
        may_have_several_labels: its images may, as `data.multi_label` says.
    """

    names: ClassVar[Collection[str]] = ()
    example: ClassVar[str | None] = None
    embedded: ClassVar[bool] = False
    configurations: ClassVar[bool] = False
    may_have_several_labels: ClassVar[bool] = False

    def recognises(self, name: str) -> bool:
        """Whether `data.name` means a set of this kind."""
        return name in self.names

    def class_count(self, name: str) -> int | None:
        """The number of classes, if it is known without looking at the data."""
        return None

    def class_names(self, section: DataSection) -> tuple[str, ...] | None:
        """The names of the classes as far as they can be told without decoding an image; None where they cannot.

        Raises:
            UsageError: the data are not there.
        """
        return None

    def has_several_labels(self, section: DataSection) -> bool:
        """Whether every image of the set may have any number of labels, where the recipe does not say it."""
        return False

    @abstractmethod
    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        """The set, whose missing parts are to be held out of its training images; or splits that are ready to use.

        Args:
            look, seed: for images that are rendered: how a model wants them, and what they are drawn from.

        Raises:
            UsageError: the data are not there, or cannot be read.
        """


class Embedded(DataKind):
    """Handwritten digits, printed ones, or both."""

    names = ("digits", "glyphs", "digits+glyphs")
    embedded = True

    def class_count(self, name: str) -> int | None:
        return len(DIGITS)

    def class_names(self, section: DataSection) -> tuple[str, ...] | None:
        return DIGITS

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        from superlora_cli.data.embedded import load_embedded
        from superlora_cli.data.source import Splits

        (train, validation, test), fingerprint = load_embedded(section, look, seed=seed)
        return Splits(train, validation, test, DIGITS, fingerprint, augmented=train.augmented)


class Folder(DataKind):
    """One's own images, a sub-folder per class: `data.name` itself, or `data.root` by timm's names."""

    by_root = ("torch/image_folder", "torch/folder")
    may_have_several_labels = True

    def recognises(self, name: str) -> bool:
        return name in self.by_root or os.path.isdir(name)

    def has_several_labels(self, section: DataSection) -> bool:
        """Where the folder has a table of labels."""
        from superlora_cli.data.labelled import find_tables

        return bool(find_tables(self._path(section)))

    def class_names(self, section: DataSection) -> tuple[str, ...] | None:
        from superlora_cli.data.folder import folder_classes
        from superlora_cli.data.labelled import table_classes

        return (table_classes if has_several_labels(section) else folder_classes)(self._path(section))

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        from superlora_cli.data.folder import read_folder
        from superlora_cli.data.labelled import read_table

        return (read_table if has_several_labels(section) else read_folder)(self._path(section))

    def _path(self, section: DataSection) -> Path:
        return Path(section.root if section.name in self.by_root else section.name)


class Torchvision(DataKind):
    """torchvision's own sets."""

    names = TORCHVISION
    example = "torch/cifar100"

    def class_count(self, name: str) -> int | None:
        return TORCHVISION[name]

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        from superlora_cli.data.torchvision_sets import read_torchvision

        classes = TORCHVISION[section.name]
        return read_torchvision(section.name, section.root, download=section.download, classes=classes)


class HuggingFace(DataKind):
    """`hfds/NAME`: sets that the library `datasets` reads."""

    example = "hfds/beans"
    configurations = True
    prefix = "hfds/"

    def recognises(self, name: str) -> bool:
        return name.startswith(self.prefix)

    def class_names(self, section: DataSection) -> tuple[str, ...] | None:
        from superlora_cli.data.hub import hub_classes

        name = section.name.removeprefix(self.prefix)
        return hub_classes(name, config=section.config, download=section.download)

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        from superlora_cli.data.hub import read_hub

        name = section.name.removeprefix(self.prefix)
        return read_hub(name, config=section.config, download=section.download)


class Shards(DataKind):
    """`wds/PATH`: a folder of webdataset shards."""

    example = "wds/folder-of-shards"
    prefix = "wds/"

    def recognises(self, name: str) -> bool:
        return name.startswith(self.prefix)

    def class_names(self, section: DataSection) -> tuple[str, ...] | None:
        from superlora_cli.data.shards import shard_classes

        return shard_classes(Path(section.name.removeprefix(self.prefix)))

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        from superlora_cli.data.shards import read_shards

        return read_shards(Path(section.name.removeprefix(self.prefix)), classes=section.num_classes)


SOURCES: Table[DataKind] = Table(
    "kind of data",
    {"embedded": Embedded(), "folder": Folder(), "torch": Torchvision(), "hfds": HuggingFace(), "wds": Shards()},
)


def kind_of(name: str) -> DataKind | None:
    """The kind of the set that `data.name` means; None where none knows it.

    >>> kind_of("torch/svhn").class_count("torch/svhn"), kind_of("torhc/svhn")
    (10, None)
    """
    if not any(kind.recognises(name) for kind in SOURCES.values()):
        load_extensions()
    return next((kind for kind in SOURCES.values() if kind.recognises(name)), None)


def kind_named(name: str) -> DataKind:
    """The kind of the set that `data.name` means.

    Raises:
        UsageError: none knows it; the message names the nearest set, or says how sets are named.
    """
    kind = kind_of(name)
    if kind is None:
        *examples, last = (kind.example for kind in SOURCES.values() if kind.example)
        hint = nearest_set(name) or f"a folder of images, or a name like {', '.join(examples)} or {last}"
        raise UsageError(f"unknown data set '{name}'", where="data.name", hint=hint)
    return kind


def nearest_set(name: str) -> str | None:
    """The hint for a misspelt name of a set, None where nothing is near."""
    return did_you_mean(name, (known for kind in SOURCES.values() for known in kind.names))


def is_embedded(name: str) -> bool:
    """Whether a set is part of superlora: always at hand, in splits that never change."""
    kind = kind_of(name)
    return kind is not None and kind.embedded


def has_several_labels(section: DataSection) -> bool:
    """Whether every image may have any number of labels: as the recipe says, else as the data do."""
    if section.multi_label is not None:
        return section.multi_label
    kind = kind_of(section.name)
    return kind is not None and kind.has_several_labels(section)


def known_class_count(section: DataSection) -> int | None:
    """The number of classes where it is known without looking at the data, or the recipe says it."""
    kind = kind_of(section.name)
    return (kind and kind.class_count(section.name)) or section.num_classes
