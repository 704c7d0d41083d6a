"""Sizes of training images: aspect-ratio buckets of about the same area."""

from __future__ import annotations

from functools import cache

import numpy as np

Size = tuple[int, int]  # width and height in pixels


@cache
def buckets(side: int, multiple: int) -> tuple[Size, ...]:
    """The sizes with sides of at most twice `side`, multiples of `multiple`, and an area of at most `side`².

    Of all heights for a width, the largest; at least one `multiple`.

    >>> buckets(32, 16)
    ((16, 64), (32, 32), (64, 16))
    """
    widths = range(multiple, 2 * side + 1, multiple)
    found = {(width, min(2 * side, side * side // width) // multiple * multiple) for width in widths}
    found |= {(height, width) for width, height in found}
    return tuple(sorted(size for size in found if min(size) > 0 and _largest(size, found)))


def _largest(size: Size, among: set[Size]) -> bool:
    return not any(other != size and other[0] >= size[0] and other[1] >= size[1] for other in among)


def nearest(size: Size, side: int, multiple: int) -> Size:
    """The bucket whose aspect ratio is nearest to that of an image; of equals, the larger.

    >>> nearest((1000, 1100), 512, 64), nearest((3000, 1000), 512, 64)
    ((512, 512), (768, 320))
    """
    wanted = np.log(size[0] / size[1])
    return min(buckets(side, multiple), key=lambda own: (abs(np.log(own[0] / own[1]) - wanted), -own[0] * own[1]))
