"""The catalogue's short form of a list of weights: consecutive equal blocks are one item.

`["blocks", 0, 12, [["attn.qkv", [2304, 768]], ...]]` stands for `blocks.0.attn.qkv` ... `blocks.11.…`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Shapes = list[tuple[str, tuple[int, ...]]]  # (module name, shape of its weight), in model order


def unroll(items: Sequence[Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The file's items → pairs (module, shape)."""
    for item in items:
        if len(item) == 2:
            yield item[0], tuple(item[1])
            continue
        prefix, first, count, block = item
        for index in range(first, first + count):
            yield from ((f"{prefix}.{index}.{suffix}", tuple(shape)) for suffix, shape in block)


def roll(shapes: Shapes) -> list[Any]:
    """Pairs (module, shape) → the file's items: consecutive equal blocks become one.

    >>> rolled = roll([("stem", (8, 3)), ("blocks.0.fc", (8, 8)), ("blocks.1.fc", (8, 8))])
    >>> rolled, roll(list(unroll(rolled))) == rolled
    ([['stem', [8, 3]], ['blocks', 0, 2, [['fc', [8, 8]]]]], True)
    """
    items: list[Any] = []
    while shapes:
        item = max(_runs(shapes), key=lambda item: item[2] * len(item[3]), default=None)
        used = 1 if item is None else item[2] * len(item[3])
        items.append(item or [shapes[0][0], list(shapes[0][1])])
        shapes = shapes[used:]
    return items


def _runs(shapes: Shapes) -> Iterator[list[Any]]:
    """Ways to split the start of `shapes` into at least two equal blocks."""
    parts = shapes[0][0].split(".")
    for depth, part in enumerate(parts[:-1]):
        if depth and part.isdigit():
            prefix, first, count, at = ".".join(parts[:depth]), int(part), 0, 0
            block = _block(shapes, f"{prefix}.{first}.")
            while _block(shapes[at:], f"{prefix}.{first + count}.") == block:
                count, at = count + 1, at + len(block)
            if count > 1:
                yield [prefix, first, count, block]


def _block(shapes: Shapes, prefix: str) -> list[Any]:
    """The leading weights under `prefix`, as [suffix, shape]."""
    block = []
    for name, shape in shapes:
        if not name.startswith(prefix):
            break
        block.append([name.removeprefix(prefix), list(shape)])
    return block
