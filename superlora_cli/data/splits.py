"""The three splits of any data set, ready for batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from torch.utils.data import Subset
from torchvision.transforms import Compose

from superlora_cli.cache import once
from superlora_cli.data.augment import training_transform
from superlora_cli.data.holding_out import BY_CONTENT, few, hold_out, seen
from superlora_cli.data.known import has_several_labels, kind_named, kind_of, known_class_count
from superlora_cli.data.source import Indexed, Look, Pictures, Source, Splits
from superlora_cli.data.texts import Texts
from superlora_cli.errors import UsageError

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import DataSection

T = TypeVar("T")
SPLITS = ("train", "validation", "test")
CACHED = 4  # data sets
DATA_SEED = 0  # for splits and rendered images: runs with different seeds see the same data


def class_count(section: DataSection) -> int | None:
    """The number of classes if known; without looking at the data if the data set is known or the recipe sets it.

    Raises:
        UsageError: as `class_names`.
    """
    return known_class_count(section) or len(class_names(section) or ()) or None


def class_names(section: DataSection) -> tuple[str, ...] | None:
    """The names of the classes, if they can be found without decoding an image; else None.

    Raises:
        UsageError: the data are missing.
    """
    return once("classes", section, lambda: _class_names(section), most=CACHED)


def _class_names(section: DataSection) -> tuple[str, ...] | None:
    kind = kind_of(section.name)
    return None if kind is None else kind.class_names(section)


def load_splits(section: DataSection, look: Look, *, seed: int) -> Splits:
    """Read or render the data that a recipe names.

    Raises:
        UsageError: the name is unknown, or the data are missing; the hint says how to provide them.
    """
    return once("splits", (section, look, seed), lambda: _load_splits(section, look, seed), most=CACHED)


def _load_splits(section: DataSection, look: Look, seed: int) -> Splits:
    kind = kind_named(section.name)
    if section.config is not None and not kind.configurations:
        raise UsageError(f"'{section.name}' has no configurations", where="data.config", hint="leave it out")
    if section.multi_label and not kind.may_have_several_labels:
        hint = "leave it out, or use a folder with a labels.csv"
        raise UsageError(f"'{section.name}' is not a folder of images", where="data.multi_label", hint=hint)
    if section.balance and has_several_labels(section):
        raise UsageError("cannot balance images with several labels", where="data.balance", hint="leave it out")
    found = kind.read(section, look, seed=seed)
    return found if isinstance(found, Splits) else _held_out(found, section, look, seed)


def evaluation_transform(look: Look) -> Compose:
    """The transform from an RGB image of any size to the model's input in evaluation, squashed: (3, S, S) float32."""
    from timm.data import create_transform

    made: Compose = create_transform(**look.keywords)
    return made


def _held_out(source: Source, section: DataSection, look: Look, seed: int) -> Splits:
    """Three splits: missing parts are held out of the training images; only training images are augmented."""
    plain = evaluation_transform(look)
    training = training_transform(section, look, plain)
    indices, notes = hold_out_of(source, section, seed)

    def part(name: str, given: Pictures | None) -> Indexed:
        return (
            given.seen_through(plain) if given is not None else Subset(source.train.seen_through(plain), indices[name])
        )

    splits = Splits(
        Subset(source.train.seen_through(training), indices["train"]),
        validation=part("validation", source.validation),
        test=part("test", source.test),
        class_names=source.class_names,
        fingerprint=source.fingerprint,
        augmented=training is not plain,
        unreadable=source.unreadable,
        notes=(*source.notes, *notes),
    )
    if source.test is not None:
        return splits
    doubt = few(source.train.labels, dict(enumerate(source.class_names))) if section.split in BY_CONTENT else None
    notes = (*source.notes, *filter(None, [doubt]))
    return replace(splits, whole=replace(splits, test=source.train.seen_through(plain), notes=notes))


def hold_out_of(source: Source, section: DataSection, seed: int) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Which training images become the parts that a data set lacks, by its recipe; returns as `hold_out`."""
    return hold_out(
        source, section.validation, section.split, seed,
        classes=dict(enumerate(source.class_names)), shuffled=("validation", "test"),
    )  # fmt: skip


def labels_of(images: Indexed) -> list[int]:
    """The class of every image of a split, if each has one."""
    found = _of_each(images, lambda pictures: pictures.labels)
    return cast(list[int], found or images.labels.tolist())  # type: ignore[attr-defined]  # an embedded data set


def contents_of(images: Indexed) -> list[str]:
    """A digest of every image or text of a split; [] for embedded sets of images, whose splits are fixed."""
    if isinstance(images, Texts):
        return images.contents
    return _of_each(images, lambda pictures: pictures.contents)


def seen_in_training(test: Indexed, train: Indexed) -> str | None:
    """A note about test images (or texts) that are also training images; None if there are none."""
    return seen(contents_of(test), contents_of(train), "texts" if isinstance(test, Texts) else "images")


def _of_each(images: Indexed, ask: Callable[[Pictures], Sequence[T]]) -> list[T]:
    """A property of every image of a split, without decoding any; [] for embedded data sets."""
    if isinstance(images, Subset):
        known = ask(cast(Pictures, images.dataset))
        return [known[index] for index in images.indices]
    return list(ask(images)) if isinstance(images, Pictures) else []
