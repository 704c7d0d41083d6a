"""The kinds of data sets that a recipe's `data.name` can mean, one object each, tried in this order.

The code that reads a data set is imported when it is used, so listing and counting need no torch. A new kind is one
object: `SOURCES.add("toy", Toy())`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from superlora_cli.data.suites import names_of
from superlora_cli.errors import UsageError, did_you_mean
from superlora_cli.table import Table, load_extensions

if TYPE_CHECKING:
    from superlora_cli.data.captioned import Captioned
    from superlora_cli.data.source import Look, Source, Splits
    from superlora_cli.data.texts import TextSource
    from superlora_cli.recipe.schema import DataSection

DIGITS = tuple("0123456789")
TORCHVISION = {  # data set → number of classes
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
    """A kind of data set.

    Attributes:
        names: its data sets, if there is a fixed list.
        example: one of its names, for the hint about an unknown name.
        embedded: whether its data sets are part of superlora: always available, with splits that never change.
        configurations: whether a data set may have several configurations, of which `data.config` selects one.
        may_have_several_labels: whether its images may have several labels (`data.multi_label`).
    """

    names: ClassVar[Collection[str]] = ()
    example: ClassVar[str | None] = None
    embedded: ClassVar[bool] = False
    configurations: ClassVar[bool] = False
    may_have_several_labels: ClassVar[bool] = False

    def recognises(self, name: str) -> bool:
        """Whether `data.name` means a data set of this kind."""
        return name in self.names

    def place(self, section: DataSection) -> Path | None:
        """The file or folder that holds the data and that nothing downloads; None for other kinds."""
        return None

    def class_count(self, name: str) -> int | None:
        """The number of classes, if known without looking at the data."""
        return None

    def class_names(self, section: DataSection) -> tuple[str, ...] | None:
        """The names of the classes, if they can be found without decoding an image; else None.

        Raises:
            UsageError: the data are missing.
        """
        return None

    def sizes(self, section: DataSection) -> dict[str, int] | None:
        """The number of images of each split, if it can be found without decoding one; else None.

        Raises:
            UsageError: the data are missing.
        """
        return None

    def has_several_labels(self, section: DataSection) -> bool:
        """Whether images have any number of labels, if the recipe does not say so."""
        return False

    def captioned(self, section: DataSection, size: int, *, seed: int) -> Captioned:
        """Read the data set as images with captions, by the template `data.caption`.

        Args:
            size, seed: for rendered images: their side in pixels, and the seed.

        Raises:
            UsageError: its images have no captions, or the data are missing or cannot be read.
        """
        hint = "a folder of images, each with a text beside it, or with data.caption"
        raise UsageError(f"'{section.name}' has no captions", where="data.name", hint=hint)

    def texts(self, section: DataSection, *, seed: int) -> TextSource:
        """Read the data set as texts, with the columns `data.columns`.

        Args:
            seed: for made texts.

        Raises:
            UsageError: it has none, or the data are missing or cannot be read.
        """
        hint = "a file such as texts.jsonl, a folder of such files, or hfds/NAME"
        raise UsageError(f"'{section.name}' holds no texts", where="data.name", hint=hint)

    @abstractmethod
    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        """Read the data set: a source, whose missing parts are held out of its training images, or complete splits.

        Args:
            look, seed: for rendered images: the format that the model expects, and the seed.

        Raises:
            UsageError: the data are missing or cannot be read.
        """


class Embedded(DataKind):
    """Handwritten digits, printed digits, or both."""

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

    def captioned(self, section: DataSection, size: int, *, seed: int) -> Captioned:
        from superlora_cli.data.embedded import caption_embedded

        return caption_embedded(section, size, seed=seed)


class Folder(DataKind):
    """The user's own images, one sub-folder per class, in `data.name` itself, or in `data.root` with timm's names."""

    by_root = ("torch/image_folder", "torch/folder")
    may_have_several_labels = True

    def recognises(self, name: str) -> bool:
        return name in self.by_root or os.path.isdir(name)

    def place(self, section: DataSection) -> Path:
        return Path(section.root if section.name in self.by_root else section.name)

    def has_several_labels(self, section: DataSection) -> bool:
        """Whether the folder has a table of labels, and not of one class for each image."""
        from superlora_cli.data.labelled import has_several

        return has_several(self.place(section))

    def class_names(self, section: DataSection) -> tuple[str, ...] | None:
        from superlora_cli.data.folder import folder_classes
        from superlora_cli.data.labelled import table_classes

        return (table_classes if self._has_table(section) else folder_classes)(self.place(section))

    def sizes(self, section: DataSection) -> dict[str, int] | None:
        from superlora_cli.data.sizes import folder_sizes

        return folder_sizes(self.place(section), section)

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        from superlora_cli.data.folder import read_folder
        from superlora_cli.data.labelled import read_table

        if self._has_table(section):
            return read_table(self.place(section), several=has_several_labels(section))
        return read_folder(self.place(section))

    def captioned(self, section: DataSection, size: int, *, seed: int) -> Captioned:
        from superlora_cli.data.captioned import read_captioned_folder

        return read_captioned_folder(self.place(section), section.caption)

    def texts(self, section: DataSection, *, seed: int) -> TextSource:
        from superlora_cli.data.text_files import read_text_files

        return read_text_files(self.place(section), section.columns)

    def _has_table(self, section: DataSection) -> bool:
        """Whether a table has the labels; a recipe may say that they are the folders, whatever the table is."""
        from superlora_cli.data.labelled import find_tables

        return section.multi_label or (section.multi_label is None and bool(find_tables(self.place(section))))


class Torchvision(DataKind):
    """torchvision's data sets."""

    names = TORCHVISION
    example = "torch/cifar100"

    def class_count(self, name: str) -> int | None:
        return TORCHVISION[name]

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        from superlora_cli.data.torchvision_sets import read_torchvision

        classes = TORCHVISION[section.name]
        return read_torchvision(section.name, section.root, download=section.download, classes=classes)


class HuggingFace(DataKind):
    """`hfds/NAME`: data sets read by the library `datasets`."""

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

        name, whole = section.name.removeprefix(self.prefix), not section.validation
        return read_hub(name, config=section.config, download=section.download, whole=whole)

    def texts(self, section: DataSection, *, seed: int) -> TextSource:
        from superlora_cli.data.hub import read_hub_texts

        name = section.name.removeprefix(self.prefix)
        return read_hub_texts(name, section.columns, config=section.config, download=section.download)


class Shards(DataKind):
    """`wds/PATH`: a folder of webdataset shards."""

    example = "wds/folder-of-shards"
    prefix = "wds/"

    def recognises(self, name: str) -> bool:
        return name.startswith(self.prefix)

    def place(self, section: DataSection) -> Path:
        return Path(section.name.removeprefix(self.prefix))

    def class_names(self, section: DataSection) -> tuple[str, ...] | None:
        from superlora_cli.data.shards import shard_classes

        return shard_classes(self.place(section))

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        from superlora_cli.data.shards import read_shards

        return read_shards(self.place(section), classes=section.num_classes)


class Listed(DataKind):
    """`vtab/NAME` and `fgvc/NAME`: the data sets of a suite, each in a folder of `data.root` with its lists.

    Args:
        suite: a name in `suites.SUITES`.
    """

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.names = names_of(suite)  # type: ignore[misc]
        self.example = next(iter(self.names))  # type: ignore[misc]

    def class_count(self, name: str) -> int | None:
        return names_of(self.suite)[name]

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        from superlora_cli.data.listed import read_fgvc, read_vtab

        name, classes = section.name.partition("/")[2], names_of(self.suite)[section.name]
        if self.suite == "vtab":
            return read_vtab(Path(section.root, name), classes, whole=not section.validation)
        return read_fgvc(Path(section.root, name), classes)


class OfTexts(DataKind):
    """Texts, which have no images."""

    def class_names(self, section: DataSection) -> tuple[str, ...] | None:
        from superlora_cli.data.texts import in_order

        found = {row["label"] for row in self.texts(section, seed=0).train.rows if "label" in row}
        return tuple(sorted(found, key=in_order)) or None

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source | Splits:
        hint = "task: language, or a folder of images"
        raise UsageError(f"'{section.name}' holds texts, not images", where="data.name", hint=hint)


class TextFile(OfTexts):
    """A file of texts."""

    suffixes = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")

    def recognises(self, name: str) -> bool:
        return name.lower().removesuffix(".gz").endswith(self.suffixes)

    def place(self, section: DataSection) -> Path:
        return Path(section.name)

    def texts(self, section: DataSection, *, seed: int) -> TextSource:
        from superlora_cli.data.text_files import read_text_files

        return read_text_files(self.place(section), section.columns)


class MadeTexts(OfTexts):
    """Made problems in several notations, and docstrings; several sets are joined by `+`."""

    names = ("sums", "sums-in-words", "sums-reversed", "sums-in-roman", "sums-in-octal", "docstrings-3.11.7")
    embedded = True

    def recognises(self, name: str) -> bool:
        return all(part in self.names for part in name.split("+"))

    def texts(self, section: DataSection, *, seed: int) -> TextSource:
        from superlora_cli.data.made_texts import read_made

        return read_made(section, seed=seed)


SOURCES: Table[DataKind] = Table(
    "kind of data",
    {
        "embedded": Embedded(),
        "folder": Folder(),
        "torch": Torchvision(),
        "hfds": HuggingFace(),
        "wds": Shards(),
        "vtab": Listed("vtab"),
        "fgvc": Listed("fgvc"),
        "text file": TextFile(),
        "made texts": MadeTexts(),
    },
)


def kind_of(name: str) -> DataKind | None:
    """The kind of the data set that `data.name` means; None if no kind recognises it.

    >>> kind_of("torch/svhn").class_count("torch/svhn"), kind_of("torhc/svhn")
    (10, None)
    """
    if not any(kind.recognises(name) for kind in SOURCES.values()):
        load_extensions()
    return next((kind for kind in SOURCES.values() if kind.recognises(name)), None)


def kind_named(name: str) -> DataKind:
    """The kind of the data set that `data.name` means.

    Raises:
        UsageError: no kind recognises it; the hint suggests a similar name, or says how data sets are named.
    """
    kind = kind_of(name)
    if kind is None:
        *examples, last = (kind.example for kind in SOURCES.values() if kind.example)
        hint = nearest_set(name) or f"a folder of images, or a name such as {', '.join(examples)} or {last}"
        raise UsageError(f"unknown data set '{name}', and no such folder here", where="data.name", hint=hint)
    return kind


def check_there(section: DataSection) -> None:
    """Refuse data that can be nowhere but on this machine, and are not.

    Raises:
        UsageError: they are missing, or `data.name` means nothing.
    """
    place = kind_named(section.name).place(section)
    if place is not None and not place.exists():
        raise UsageError("no such file or folder", where=str(place), hint="data.name and data.root say where data are")


def nearest_set(name: str) -> str | None:
    """The hint for a misspelt name of a data set; None if no name is similar."""
    return did_you_mean(name, (known for kind in SOURCES.values() for known in kind.names))


def is_embedded(name: str) -> bool:
    """Whether a data set is part of superlora: always available, with splits that never change."""
    kind = kind_of(name)
    return kind is not None and kind.embedded


def has_several_labels(section: DataSection) -> bool:
    """Whether images have any number of labels, according to the recipe or else to the data."""
    if section.multi_label is not None:
        return section.multi_label
    kind = kind_of(section.name)
    return kind is not None and kind.has_several_labels(section)


def known_class_count(section: DataSection) -> int | None:
    """The number of classes, if known without looking at the data or set by the recipe."""
    kind = kind_of(section.name)
    return (kind and kind.class_count(section.name)) or section.num_classes
