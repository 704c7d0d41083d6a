"""Which images (or texts) are held out for validation and test if a data set has no such part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, Self, TypeVar

import numpy as np

BY_CONTENT = ("content", "label")  # rules; the others are by position
HELD = ("test", "validation")
FEWEST = 3  # images of a class from which on at least one is held out
FEW = 5  # images of a class, too few for a meaningful accuracy
NAMED = 5  # classes named in a note


class Items(Protocol):
    """Images or texts.

    Attributes:
        labels: the class of each, or a tuple of several.
        contents: a digest of each.
    """

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Sequence[Hashable]: ...

    @property
    def contents(self) -> Sequence[str]: ...


class Divisible(Items, Protocol):
    """Some of them are of the same type."""

    def part(self, indices: Sequence[int]) -> Self: ...


I = TypeVar("I", covariant=True)  # noqa: E741
D = TypeVar("D", bound=Divisible)
T = TypeVar("T")


class Found(Protocol[I]):
    """A data set as found, without a validation or test part where it has none."""

    @property
    def train(self) -> I: ...

    @property
    def validation(self) -> I | None: ...

    @property
    def test(self) -> I | None: ...


def hold_out(
    found: Found[Items],
    share: float,
    rule: str | None,
    seed: int,
    *,
    classes: Mapping[Any, str],
    called: str = "images",
    shuffled: Sequence[str] = HELD,
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Choose which training images become the parts that a data set lacks.

    Args:
        share: of the training images, or of every class, in each of these parts.
        rule: `data.split`; of those in `BY_CONTENT`, a note says what makes an accuracy less reliable.
        seed: of the shuffling by position.
        classes: class → its name, for all that give their share each; images of no class, or of several, are one more.
        called: what the elements are.
        shuffled: the order in which a shuffle is dealt to the parts.

    Returns:
        Indices into the training images, sorted: of each part that is lacking, and of `train`. Then the notes.
    """
    lacking = [name for name in (HELD if rule in BY_CONTENT else shuffled) if getattr(found, name) is None]
    if rule in BY_CONTENT and lacking and share:
        own = [label if label in classes else None for label in found.train.labels]
        held = by_content(own, found.train.contents, share, len(lacking))
    else:
        held = by_position(len(found.train), share, len(lacking), seed)
    indices = dict(zip((*lacking, "train"), held, strict=True))
    if rule not in BY_CONTENT:
        return indices, ()
    test, doubts = found.test, []
    if lacking:
        contents = found.train.contents
        tested = _picked(contents, indices["test"]) if test is None else test.contents
        doubts.append(seen(tested, _picked(contents, indices["train"]), called))
    if classes:
        labels = _picked(found.train.labels, indices["test"]) if test is None else test.labels
        doubts.append(few(labels, classes, called))
    return indices, tuple(filter(None, doubts))


def _picked(values: Sequence[T], indices: Sequence[int]) -> list[T]:
    return [values[index] for index in indices]


def three_parts_of(
    found: Found[D], share: float, rule: str | None, seed: int, *, classes: Mapping[Any, str], called: str
) -> tuple[tuple[D, D, D], tuple[str, ...]]:
    """The training, validation and test part, and notes; arguments as for `hold_out`.

    An empty part is the training part again, since a handful of images can spare none.
    """
    indices, notes = hold_out(found, share, rule, seed, classes=classes, called=called)
    train = found.train.part(indices["train"])
    validation, test = (
        given if given is not None else found.train.part(indices[name])
        for name, given in (("validation", found.validation), ("test", found.test))
    )
    if len(train) and not (len(validation) and len(test)):
        notes += (f"no {called} are held out: the loss is measured on the training {called}",)
    return (train, validation if len(validation) else train, test if len(test) else train), notes


def by_content(labels: Sequence[Hashable], contents: Sequence[str], part: float, parts: int) -> list[list[int]]:
    """A stratified, stable split: the images of each class are ordered by a hash of their content and held out from
    both ends.

    Adding or removing an image moves at most one other image of its class into or out of each part. If no class is
    large enough to give up an image, all classes are treated as one.

    Args:
        labels, contents: class and digest of every image.
        part: share of every class in each held-out part.
        parts: number of held-out parts: 1, from the start of the order, or 2, the second from its end.

    Returns:
        Indices of each part, then the remaining ones; each sorted.

    >>> by_content([0] * 5 + [1] * 5, list("abcdeedcba"), 0.2, 2)
    [[0, 9], [4, 5], [1, 2, 3, 6, 7, 8]]
    """
    classes: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        classes.setdefault(label, []).append(index)
    found: list[list[int]] = [[] for _ in range(parts + 1)]
    for members in classes.values():
        order = sorted(members, key=contents.__getitem__)
        each = held_out_of(len(order), part, parts)
        first, last = order[:each], order[len(order) - each :]
        taken = [first, last][:parts]
        left = order[each : len(order) - each * (parts - 1)] if parts else order
        for whole, own in zip(found, [*taken, left], strict=True):
            whole.extend(own)
    if len(classes) > 1 and not any(found[:-1]):  # all classes have one or two images: treat them as one
        return by_content([0] * len(labels), contents, part, parts)
    return [sorted(indices) for indices in found]


def held_out_of(images: int, part: float, parts: int) -> int:
    """How many images of a class go into each of `parts`: a share of `part`, but at least one of three or more.

    At least one is always left for training.

    >>> [held_out_of(images, 0.1, 2) for images in (2, 3, 40, 45, 46)]
    [0, 1, 4, 4, 5]
    """
    if not part or not parts:
        return 0
    least = 1 if images >= FEWEST else 0
    return min(max(least, round(part * images)), (images - 1) // parts)


def seen(test: Sequence[str], train: Sequence[str], called: str = "images") -> str | None:
    """A note about test images that are also training images, by their contents; None if there are none.

    >>> seen(["a", "b"], ["b", "c"])
    '1 of 2 test images are also training images'
    """
    known = set(train)
    count = sum(content in known for content in test)
    return f"{count:,} of {len(test):,} test {called} are also training {called}" if count else None


def few(labels: Sequence[Hashable], classes: Mapping[Any, str], called: str = "images") -> str | None:
    """A note about classes with few test images, by the labels of these; None if there are none.

    >>> few([0] * 9 + [(0, 1)] * 2, {0: "cat", 1: "dog"})
    'classes with fewer than 5 test images, too few for a meaningful accuracy: dog (2)'
    """
    counts: Counter[Hashable] = Counter()
    for label in labels:
        counts.update(label if isinstance(label, tuple) else (label,))
    found = [f"{name} ({counts[label]})" for label, name in classes.items() if counts[label] < FEW]
    if not found:
        return None
    named = ", ".join(found[:NAMED]) + (", …" if len(found) > NAMED else "")
    return f"classes with fewer than {FEW} test {called}, too few for a meaningful accuracy: {named}"


def by_position(count: int, part: float, parts: int, seed: int) -> list[list[int]]:
    """Split a shuffle of 0 … count − 1, which changes completely with each added image; returns as `by_content`."""
    order = np.random.RandomState(seed).permutation(count).tolist()
    cut = round(count * part)
    ends = [cut * number for number in range(parts + 1)] + [count]
    return [sorted(order[start:end]) for start, end in pairwise(ends)]
