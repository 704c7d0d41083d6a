"""Printed digits with captions: "a red seven on a blue ground, serif".

The embedded set that the small text-to-image pipeline is trained on. One digit in the middle, upright or slanted, in
one of a few colours on another; everything that the caption says can be read from the image, and hardly more varies.
Which combinations of words are held out depends on the words alone.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from superlora_cli.data.glyphs import FONTS, OVERSAMPLING, SPLIT_KEYS, Split, outline

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {"black": (0.04, 0.04, 0.04), "blue": (0.06, 0.08, 0.45), "purple": (0.42, 0.10, 0.52),
           "red": (0.92, 0.14, 0.12), "green": (0.10, 0.50, 0.18), "orange": (0.98, 0.60, 0.15),
           "cyan": (0.45, 0.85, 0.95), "pink": (0.98, 0.72, 0.82), "yellow": (0.97, 0.90, 0.30),
           "white": (0.97, 0.97, 0.97)}  # fmt: skip
CONTRAST = 0.245  # least difference in brightness of two colours of an image, so that the digit can be read
STYLES = {
    "sans": ("DejaVuSans", "DejaVuSans-Bold", "cmss10"),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralBol", "cmr10", "cmb10"),
    "italic": ("DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSerif-Italic", "STIXGeneralBolIta", "cmti10"),
}
HELD_OUT = 0.1  # share of the captions


class Words(NamedTuple):
    """What a caption says."""

    number: str
    ink: str
    ground: str
    style: str

    def __str__(self) -> str:
        article = "an" if self.ink[0] in "aeiou" else "a"
        return f"{article} {self.ink} {self.number} on a {self.ground} ground, {self.style}"

    @property
    def held_out(self) -> bool:
        """Whether no training image has exactly these words."""
        return int(hashlib.sha256(str(self).encode()).hexdigest(), 16) % 1000 < 1000 * HELD_OUT


def brightness(colour: str) -> float:
    """Of a colour, in [0, 1] (Rec. 601)."""
    return float(np.dot(COLOURS[colour], (0.299, 0.587, 0.114)))


def every_caption() -> list[Words]:
    """All captions whose digit can be read.

    >>> len(every_caption()), str(every_caption()[0])
    (1740, 'a black zero on a red ground, sans')
    """
    pairs = [
        (ink, ground)
        for ink, ground in itertools.permutations(COLOURS, 2)
        if abs(brightness(ink) - brightness(ground)) >= CONTRAST
    ]
    return [Words(number, *pair, style) for number in NUMBERS for pair in pairs for style in STYLES]


def render(words: Words, rng: np.random.RandomState, size: int = 16) -> np.ndarray:
    """An image of what the words say, uint8 (size, size, 3)."""
    side = OVERSAMPLING * size
    fonts = STYLES[words.style]
    drawn = outline(FONTS.index(fonts[rng.randint(len(fonts))]), NUMBERS.index(words.number), side)
    zoom, width = rng.uniform(0.68, 0.85), rng.uniform(0.95, 1.2)
    slant = rng.uniform(-0.3, -0.2) if words.style == "italic" else rng.uniform(-0.04, 0.04)
    forward = zoom * np.array([[width, slant], [0.0, 1.0]])
    (a, b), (d, e) = np.linalg.inv(forward).tolist()
    x, y = side / 2 + side * rng.uniform(-0.06, 0.06, size=2)
    c, f = drawn.width / 2 - a * x - b * y, drawn.height / 2 - d * x - e * y
    placed = drawn.transform((side, side), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    cover = np.asarray(placed, np.float32).reshape(size, OVERSAMPLING, size, OVERSAMPLING).mean(axis=(1, 3)) / 255
    ink, ground = (np.array(COLOURS[name]) + rng.uniform(-0.03, 0.03, 3) for name in (words.ink, words.ground))
    value = ground + cover[..., None] * (ink - ground)
    return np.clip(np.rint(value * 255), 0, 255).astype(np.uint8)


def render_captioned(split: Split, count: int, size: int = 16, seed: int = 0) -> tuple[Tensor, list[str]]:
    """The first `count` images of a split, uint8 (count, 3, S, S), and their captions.

    Args:
        split: `train`, or `validation` or `test`: only words that no training image has together.

    >>> images, captions = render_captioned("train", 2)
    >>> images.shape, captions[0]
    (torch.Size([2, 3, 16, 16]), 'a red six on a white ground, serif')
    """
    known = [words for words in every_caption() if words.held_out == (split != "train")]
    images, captions = np.empty((count, size, size, 3), np.uint8), []
    for index in range(count):
        rng = np.random.RandomState([seed, SPLIT_KEYS[split], index])
        words = known[rng.randint(len(known))]
        images[index] = render(words, rng, size)
        captions.append(str(words))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), captions
