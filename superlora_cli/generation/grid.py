"""One picture of many images: with a named row per class, or a title for each image."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 64  # pixels, the smallest size at which an image is shown
COLUMNS, ROWS, LONGEST = 20, 50, 80  # most images per row, rows, and characters of a name
MARGIN, FONT = 4, 14  # pixels
TITLE_LINES = 2  # most lines of the title of an image
INK, PAPER, NAME_WIDTH = (0, 0, 0), (255, 255, 255), 200  # pixels, longer names are truncated


def png(image: Tensor) -> bytes:
    """A PNG of one image, uint8 (3, H, W): equal pixels give equal bytes."""
    return _bytes(Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())))


def labelled_grid(images: Tensor, classes: Sequence[int], names: Sequence[str], caption: str = "") -> bytes:
    """A PNG with one row per class, its name on the left, and the caption on top.

    Small images are enlarged by an integer factor, without interpolation; at most 20 images per row and 50 classes are
    shown.

    Args:
        images: uint8 (N, 3, H, W).
        classes: class of each image; rows are in order of first appearance.
        names: name of every class.
    """
    order = list(dict.fromkeys(classes))[:ROWS]
    rows = {number: [i for i, other in enumerate(classes) if other == number][:COLUMNS] for number in order}
    size = max(images.shape[-2:])
    scale = max(1, math.ceil(CELL / size))
    cell = size * scale + MARGIN
    font = _font()
    shown = {number: _fit(names[number], font) for number in rows}
    left = MARGIN + max(math.ceil(font.getlength(name)) for name in shown.values()) + 2 * MARGIN
    columns = max(len(row) for row in rows.values())
    lines = _wrap(caption, font, max(left + columns * cell - 2 * MARGIN, NAME_WIDTH))
    top = MARGIN + len(lines) * (FONT + MARGIN)
    width = max([left + columns * cell, *(math.ceil(font.getlength(line)) + 2 * MARGIN for line in lines)])
    sheet = Image.new("RGB", (width, top + len(rows) * cell), PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + index * (FONT + MARGIN)), line, INK, font)
    for row, (number, members) in enumerate(rows.items()):
        y = top + row * cell
        pen.text((MARGIN, y + (cell - MARGIN) / 2), shown[number], INK, font, anchor="lm")
        for column, index in enumerate(members):
            sheet.paste(_enlarged(images[index], scale), (left + column * cell, y))
    return _bytes(sheet)


def titled_grid(images: Tensor, titles: Sequence[str]) -> bytes:
    """A roughly square PNG with a title above every image.

    Args:
        images: uint8 (N, 3, S, S), enlarged as in `labelled_grid`, but to twice that size.
        titles: one per image, in at most two lines.
    """
    size = images.shape[-1]
    scale = max(1, math.ceil(2 * CELL / size))
    font, side = _font(), size * scale
    wrapped = [_wrap(title, font, side)[:TITLE_LINES] for title in titles]
    top = max(map(len, wrapped)) * (FONT + MARGIN)
    width, height = side + MARGIN, top + side + 2 * MARGIN
    columns = math.ceil(math.sqrt(len(titles)))
    rows = math.ceil(len(titles) / columns)
    sheet = Image.new("RGB", (MARGIN + columns * width, MARGIN + rows * height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, lines in enumerate(wrapped):
        x, y = MARGIN + index % columns * width, MARGIN + index // columns * height
        for number, line in enumerate(lines):
            pen.text((x, y + number * (FONT + MARGIN)), _fit(line, font, side), INK, font)
        sheet.paste(_enlarged(images[index], scale), (x, y + top))
    return _bytes(sheet)


def _font() -> ImageFont.FreeTypeFont:
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), FONT, layout_engine=ImageFont.Layout.BASIC)  # the same on every machine


def _enlarged(image: Tensor, scale: int) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)  # (scale·S, scale·S, 3)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _fit(name: str, font: ImageFont.FreeTypeFont, width: float = NAME_WIDTH) -> str:
    name = " ".join(name[:LONGEST].split())
    if font.getlength(name) <= width:
        return name
    while font.getlength(name + "…") > width:
        name = name[:-1]
    return name + "…"


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
