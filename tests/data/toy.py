"""A kind of data from outside, in one object: plain images, a colour for every class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from PIL import Image

from superlora_cli.data.known import DataKind
from superlora_cli.data.source import Look, Pictures, Source
from superlora_cli.recipe.schema import DataSection

COLOURS = ("red", "green", "blue")


class Plain(Pictures):
    """So many images of every colour."""

    def __init__(self, each: int) -> None:
        self.each = each

    def __len__(self) -> int:
        return self.each * len(COLOURS)

    def picture(self, index: int) -> tuple[Image.Image, int]:
        label = index % len(COLOURS)
        return Image.new("RGB", (8, 8), COLOURS[label]), label

    @property
    def labels(self) -> Sequence[int]:
        return [index % len(COLOURS) for index in range(len(self))]

    @property
    def contents(self) -> Sequence[str]:
        return [hashlib.sha256(str(index).encode()).hexdigest() for index in range(len(self))]


class Toy(DataKind):
    """`toy`, or `toy/N` with N images of every colour."""

    names = ("toy",)
    example = "toy/8"

    def recognises(self, name: str) -> bool:
        return name.partition("/")[0] == "toy"

    def class_count(self, name: str) -> int | None:
        return len(COLOURS)

    def class_names(self, section: DataSection) -> tuple[str, ...] | None:
        return COLOURS

    def read(self, section: DataSection, look: Look, *, seed: int) -> Source:
        each = int(section.name.partition("/")[2] or 8)
        return Source(Plain(each), None, Plain(2), COLOURS, fingerprint=section.name)
