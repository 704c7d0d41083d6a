"""Which images are held out for validation and test if a data set has no such part."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

Rule = Literal["content", "shuffle"]
FEWEST = 3  # images of a class from which on at least one is held out


def by_content(labels: Sequence[int], contents: Sequence[str], part: float, parts: int) -> list[list[int]]:
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
    classes: dict[int, list[int]] = {}
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


def by_position(count: int, part: float, parts: int, seed: int) -> list[list[int]]:
    """Split a shuffle of 0 … count − 1, which changes completely with each added image; returns as `by_content`."""
    order = np.random.RandomState(seed).permutation(count).tolist()
    cut = round(count * part)
    ends = [cut * number for number in range(parts + 1)] + [count]
    return [sorted(order[start:end]) for start, end in pairwise(ends)]
