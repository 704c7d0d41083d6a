"""The embedded source domain: printed digits in the style of house numbers, rendered from a seed.

Source: the fonts that matplotlib ships, rasterised by Pillow (FreeType). Random colours on gradients, slanted, scaled,
shifted, blurred, with neighbouring digits cropped at the borders; the label is the digit in the middle.

Reproducibility: sample i of a split depends only on (seed, split, i), not on the number of samples, the process or the
machine. The outlines come from FreeType and the blur from Pillow, so another version of either may change a pixel.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

Split = Literal["train", "validation", "test"]

SPLIT_KEYS: dict[str, int] = {"train": 0, "validation": 1, "test": 2}
# A fixed list, because matplotlib may add fonts, and three of the 25 fonts with digits in their character map draw
# something else there (cmex10 and cmsy10 brackets and symbols, LastResortHE placeholders).
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-BoldItalic", "-Italic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "BolIta", "Italic")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
OVERSAMPLING = 2
CHUNK = 2048  # images coloured at a time: bounds the memory of the float intermediates
LIGHT_ON_DARK = 0.5  # share of images whose strokes are lighter than the background


@functools.lru_cache(maxsize=4 * len(FONTS) * 10)
def outline(font: int, digit: int, pixels: int) -> Image.Image:
    """One digit cropped to its ink, `pixels` high, 8-bit coverage, with a margin of 2 on every side."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{FONTS[font]}.ttf")
    face = ImageFont.truetype(str(path), round(pixels * 1.4), layout_engine=ImageFont.Layout.BASIC)
    canvas = Image.new("L", (4 * pixels, 4 * pixels))
    ImageDraw.Draw(canvas).text((2 * pixels, 2 * pixels), str(digit), fill=255, font=face, anchor="mm")
    ink = canvas.crop(canvas.getbbox())
    ink = ink.resize((max(1, round(ink.width * pixels / ink.height)), pixels), Image.Resampling.BILINEAR)
    framed = Image.new("L", (ink.width + 4, pixels + 4))
    framed.paste(ink, (2, 2))
    return framed


def _coverage(rng: np.random.RandomState, label: int, size: int) -> np.ndarray:
    """The strokes of one image, uint8, (2·size, 2·size): a digit in the middle, often with one or two next to it."""
    side = OVERSAMPLING * size
    font = rng.randint(len(FONTS))
    height = side * rng.uniform(0.55, 0.9)
    width_ratio, slant, angle = rng.uniform(0.8, 1.35), rng.uniform(-0.3, 0.3), math.radians(rng.uniform(-15, 15))
    shift_x, shift_y = side * rng.uniform(-0.08, 0.08, size=2)
    beside = [(-1, rng.randint(10), rng.uniform() < 0.35), (1, rng.randint(10), rng.uniform() < 0.35)]
    gap = side * rng.uniform(0.02, 0.2)
    sigma = side * rng.uniform(0.0, 0.045)

    middle = outline(font, label, side)
    # Image = R(angle) · [[width_ratio, slant], [0, 1]] · zoom · outline; Pillow wants the inverse.
    zoom = height / side
    cos, sin = math.cos(angle), math.sin(angle)
    forward = zoom * np.array([[cos, -sin], [sin, cos]]) @ np.array([[width_ratio, slant], [0.0, 1.0]])
    (a, b), (d, e) = np.linalg.inv(forward).tolist()
    strokes = Image.new("L", (side, side))
    for direction, digit, shown in [(0, label, True), *beside]:
        if not shown:
            continue
        other = outline(font, int(digit), side)
        along = direction * ((middle.width + other.width) / 2 * width_ratio * zoom + gap)
        x, y = side / 2 + shift_x + along * cos, side / 2 + shift_y + along * sin  # centre in the image
        c, f = other.width / 2 - a * x - b * y, other.height / 2 - d * x - e * y
        placed = other.transform((side, side), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
        strokes.paste(255, (0, 0), placed)  # blends over existing strokes, by coverage
    return np.asarray(strokes.filter(ImageFilter.GaussianBlur(sigma)))


def _colours(rng: np.random.RandomState) -> np.ndarray:
    """Colours of the strokes and of both ends of the background, (3, 3) rows of RGB in [0, 1]; they differ in
    brightness by at least 0.3 before tinting."""
    dark = rng.uniform(0.0, 0.45)
    light = rng.uniform(dark + 0.3, 1.0)
    strokes, ground = (light, dark) if rng.uniform() < LIGHT_ON_DARK else (dark, light)
    tints = rng.uniform(-0.12, 0.12, size=(3, 3))
    return np.clip(np.array([[strokes], [ground], [ground + rng.uniform(-0.1, 0.1)]]) + tints, 0, 1)


def render_glyphs(
    split: Split, count: int, image_size: int = 16, seed: int = 0, pixel_noise: float = 0.02
) -> tuple[Tensor, Tensor]:
    """The first `count` printed digits of a split; about 2,400 per second on one core at 16×16.

    Args:
        split: train, validation or test: three streams that share no sample.
        count: n, the number of images.
        image_size: S, in pixels.
        seed: seed of the whole set.
        pixel_noise: standard deviation of the Gaussian noise on each value, as a share of the full range.

    Returns:
        images: uint8, (n, 3, S, S), 0 to 255.
        labels: int64, (n,), 0 to 9, uniform.

    Raises:
        KeyError: for any other split.

    >>> images, labels = render_glyphs("train", 4)
    >>> images.shape, images.dtype, bool((images[:2] == render_glyphs("train", 2)[0]).all())
    (torch.Size([4, 3, 16, 16]), torch.uint8, True)
    """
    key, size = SPLIT_KEYS[split], image_size
    images, labels = np.empty((count, 3, size, size), np.uint8), np.empty(count, np.int64)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    for start in range(0, count, CHUNK):
        n = min(CHUNK, count - start)
        cover = np.empty((n, OVERSAMPLING * size, OVERSAMPLING * size), np.uint8)
        colours, slope = np.empty((n, 3, 3), np.float32), np.empty((n, 2), np.float32)
        noise = np.empty((n, 3, size, size), np.float32)
        for i in range(n):
            rng = np.random.RandomState([seed, key, start + i])
            labels[start + i] = rng.randint(10)
            cover[i] = _coverage(rng, int(labels[start + i]), size)
            colours[i], slope[i] = _colours(rng), rng.uniform(-1, 1, size=2)
            noise[i] = rng.standard_normal((3, size, size))
        blocks = cover.reshape(n, size, OVERSAMPLING, size, OVERSAMPLING)
        ink = blocks.mean(axis=(2, 4), dtype=np.float32)[:, None] / 255  # (n, 1, S, S) in [0, 1]
        mix = 0.5 + slope[:, :1, None] * ramp[:, None] + slope[:, 1:, None] * ramp  # (n, S, S), the gradient
        strokes, near, far = (colours[:, row, :, None, None] for row in range(3))  # (n, 3, 1, 1) each
        ground = near + np.clip(mix, 0, 1)[:, None] * (far - near)  # (n, 3, S, S)
        value = ground + ink * (strokes - ground) + pixel_noise * noise
        images[start : start + n] = np.clip(np.rint(value * 255), 0, 255)
    return torch.from_numpy(images), torch.from_numpy(labels)
