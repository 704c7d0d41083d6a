"""The three splits of a data set, ready to be batched: embedded sets, one's own images, and well-known sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from torch.utils.data import Dataset, Subset
from torchvision.transforms import Compose

from superlora_cli.data.augment import training_transform
from superlora_cli.data.holding_out import by_content, by_position
from superlora_cli.data.source import Look, Pictures, Sample, Source, Unreadable
from superlora_cli.errors import UsageError, did_you_mean
from superlora_cli.kept import once

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import DataSection

T = TypeVar("T")
DIGITS = tuple("0123456789")
EMBEDDED_SETS = ("digits", "glyphs", "digits+glyphs")
CLASSES = {**dict.fromkeys(EMBEDDED_SETS, 10), "torch/cifar10": 10, "torch/cifar100": 100, "torch/mnist": 10,
           "torch/svhn": 10, "torch/kmnist": 10, "torch/fashion_mnist": 10, "torch/qmnist": 10, "torch/imagenet": 1000,
           "torch/places365": 365, "torch/inaturalist": 10_000}  # fmt: skip
SPLITS = ("train", "validation", "test")
KEPT = 4  # data sets
FEW = 5  # images of a class, of which an accuracy says little
NAMED = 5  # classes that a note names


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


def class_count(section: DataSection) -> int | None:
    """The number of classes as far as it is known: without looking at data for known sets and where the recipe says it.

    Raises:
        UsageError: as `class_names`.
    """
    known = CLASSES.get(section.name) or section.num_classes
    return known or len(class_names(section) or ()) or None


def class_names(section: DataSection) -> tuple[str, ...] | None:
    """The names of the classes as far as they can be told without decoding an image; None where they cannot.

    Raises:
        UsageError: the data are not there.
    """
    return once("classes", section, lambda: _class_names(section), most=KEPT)


def _class_names(section: DataSection) -> tuple[str, ...] | None:
    if section.name in EMBEDDED_SETS:
        return DIGITS
    kind = _kind(section)
    return None if kind is None else kind.classes()


def load_splits(section: DataSection, look: Look, *, seed: int) -> Splits:
    """Read or render the data that a recipe names.

    Raises:
        UsageError: an unknown name, or data that are not there; says how to provide them.
    """
    return once("splits", (section, look, seed), lambda: _load_splits(section, look, seed), most=KEPT)


def _load_splits(section: DataSection, look: Look, seed: int) -> Splits:
    if section.config is not None and not section.name.startswith("hfds/"):
        raise UsageError(f"'{section.name}' has no configurations", where="data.config", hint="leave it out")
    if section.multi_label and _folder(section) is None:
        hint = "leave it out, or name a folder with a labels.csv"
        raise UsageError(f"'{section.name}' is no folder of images", where="data.multi_label", hint=hint)
    if section.balance and has_several_labels(section):
        raise UsageError("images have several labels, no one class", where="data.balance", hint="leave it out")
    if section.name in EMBEDDED_SETS:
        from superlora_cli.data.embedded import load_embedded

        (train, validation, test), fingerprint = load_embedded(section, look, seed=seed)
        return Splits(train, validation, test, DIGITS, fingerprint, augmented=train.augmented)
    return _held_out(_source(section), section, look, seed)


def evaluation_transform(look: Look) -> Compose:
    """From an RGB image of any size to what the model sees in evaluation, squashed: (3, S, S) float32."""
    from timm.data import create_transform

    size = (3, look.size, look.size)
    made: Compose = create_transform(input_size=size, mean=look.mean, std=look.std, crop_pct=1.0, crop_mode="squash")
    return made


def _folder(section: DataSection) -> Path | None:
    """The folder of images that is meant, if it is one."""
    if section.name in ("torch/image_folder", "torch/folder"):
        return Path(section.root)
    return Path(section.name) if Path(section.name).is_dir() else None


def has_several_labels(section: DataSection) -> bool:
    """Whether every image may have several labels: as the recipe says, else where its folder has a table of them."""
    if section.multi_label is not None:
        return section.multi_label
    folder = _folder(section)
    if folder is None:
        return False
    from superlora_cli.data.labelled import find_tables

    return bool(find_tables(folder))


class Kind(NamedTuple):
    """How a data set is read: the names of its classes alone, None where nothing tells them, or all of it."""

    classes: Callable[[], tuple[str, ...] | None]
    read: Callable[[], Source]


def _kind(section: DataSection) -> Kind | None:
    """How the set is read that is meant; None for a set of torchvision, or of nobody."""
    kind, _, name = section.name.partition("/")
    folder = _folder(section)
    if folder and has_several_labels(section):
        from superlora_cli.data.labelled import read_table, table_classes

        return Kind(partial(table_classes, folder), partial(read_table, folder))
    if folder:
        from superlora_cli.data.folder import folder_classes, read_folder

        return Kind(partial(folder_classes, folder), partial(read_folder, folder))
    if kind == "hfds":
        from superlora_cli.data.hub import hub_classes, read_hub

        config, download = section.config, section.download
        return Kind(
            partial(hub_classes, name, config=config, download=download),
            partial(read_hub, name, config=config, download=download),
        )
    if kind == "wds":
        from superlora_cli.data.shards import read_shards, shard_classes

        return Kind(partial(shard_classes, Path(name)), partial(read_shards, Path(name), classes=section.num_classes))
    return None


def _source(section: DataSection) -> Source:
    """Read the set that is meant."""
    if kind := _kind(section):
        return kind.read()
    if section.name in CLASSES:
        from superlora_cli.data.torchvision_sets import read_torchvision

        return read_torchvision(section.name, section.root, download=section.download, classes=CLASSES[section.name])
    hint = did_you_mean(section.name, CLASSES)
    hint = hint or "a folder of images, or a name like torch/cifar100, hfds/beans or wds/folder-of-shards"
    raise UsageError(f"unknown data set '{section.name}'", where="data.name", hint=hint)


def _held_out(source: Source, section: DataSection, look: Look, seed: int) -> Splits:
    """Three splits: what the source lacks is held out of its training images, which alone are augmented."""
    plain = evaluation_transform(look)
    training = training_transform(section, look, plain)
    train, given = source.train, [source.test, source.validation]
    missing = sum(images is None for images in given)
    if section.split == "content" and missing and section.validation:
        classes = [label if isinstance(label, int) else 0 for label in train.labels]  # of several none is the one
        *held, left = by_content(classes, train.contents, section.validation, missing)
    else:
        *held, left = by_position(len(train), section.validation, missing, seed)
    if section.split != "content":
        held.reverse()  # of old the validation images were cut off first
    found: list[Dataset[Sample]] = [
        Subset(train.seen_through(plain), held.pop(0)) if images is None else images.seen_through(plain)
        for images in given
    ]
    splits = Splits(
        Subset(train.seen_through(training), left),
        validation=found[1],
        test=found[0],
        class_names=source.class_names,
        fingerprint=source.fingerprint,
        augmented=training is not plain,
        unreadable=source.unreadable,
        notes=source.notes,
    )
    if section.split != "content":
        return splits
    doubts = [seen_in_training(splits.test, splits.train) if missing else None, _few(splits)]
    return replace(splits, notes=(*splits.notes, *filter(None, doubts)))


def labels_of(images: Dataset[Sample]) -> list[int]:
    """The class of every image of a split, where each has one."""
    found = _of_each(images, lambda pictures: pictures.labels)
    return cast(list[int], found or images.labels.tolist())  # type: ignore[attr-defined]  # of an embedded set


def contents_of(images: Dataset[Sample]) -> list[str]:
    """What every image of a split is; [] for embedded sets, whose splits are fixed."""
    return _of_each(images, lambda pictures: pictures.contents)


def seen_in_training(test: Dataset[Sample], train: Dataset[Sample]) -> str | None:
    """A line on images of a test split that are training images as well, None where there are none."""
    known = set(contents_of(train))
    found = contents_of(test)
    count = sum(content in known for content in found)
    return f"{count:,} of {len(found):,} test images are training images as well" if count else None


def _few(splits: Splits) -> str | None:
    """A line on classes with few test images, None where all have more."""
    counts: Counter[int] = Counter()
    for labels in _of_each(splits.test, lambda pictures: pictures.labels):
        counts.update([labels] if isinstance(labels, int) else labels)
    few = [f"{name} ({counts[label]})" for label, name in enumerate(splits.class_names) if counts[label] < FEW]
    if not few:
        return None
    named = ", ".join(few[:NAMED]) + (", …" if len(few) > NAMED else "")
    return f"classes of fewer than {FEW} test images, whose accuracy says little: {named}"


def _of_each(images: Dataset[Sample], ask: Callable[[Pictures], Sequence[T]]) -> list[T]:
    """What is known of every image of a split without decoding one; [] for embedded sets."""
    if isinstance(images, Subset):
        known = ask(cast(Pictures, images.dataset))
        return [known[index] for index in images.indices]
    return list(ask(images)) if isinstance(images, Pictures) else []
