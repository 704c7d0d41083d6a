"""One picture of many images: a row per class, with its name."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 64  # pixels, the smallest side an image is shown with
COLUMNS, ROWS, LONGEST = 20, 50, 80  # images in a row, rows and letters of a name at most
MARGIN, FONT = 4, 14  # pixels
INK, PAPER, NAME_WIDTH = (0, 0, 0), (255, 255, 255), 200  # a longer name is cut


def png(image: Tensor) -> bytes:
    """A PNG of one image, uint8 (3, H, W): equal pixels are equal bytes."""
    return _bytes(Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())))


def labelled_grid(images: Tensor, classes: Sequence[int], names: Sequence[str], caption: str = "") -> bytes:
    """A PNG with the images of each class in a row, its name on the left and the caption on top.

    Small images are enlarged by whole numbers, pixel for pixel; a row ends after 20 images, the picture after
    50 classes.

    Args:
        images: uint8 (N, 3, S, S).
        classes: class of each image; rows come in the order in which classes come first.
        names: name of every class.
    """
    order = list(dict.fromkeys(classes))[:ROWS]
    rows = {number: [i for i, other in enumerate(classes) if other == number][:COLUMNS] for number in order}
    size = images.shape[-1]
    scale = max(1, math.ceil(CELL / size))
    cell = size * scale + MARGIN
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(str(file), FONT, layout_engine=ImageFont.Layout.BASIC)  # the same on every machine
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
            pixels = images[index].permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)  # (scale·S, scale·S, 3)
            sheet.paste(Image.fromarray(np.ascontiguousarray(pixels)), (left + column * cell, y))
    return _bytes(sheet)


def _fit(name: str, font: ImageFont.FreeTypeFont) -> str:
    name = " ".join(name[:LONGEST].split())
    if font.getlength(name) <= NAME_WIDTH:
        return name
    while font.getlength(name + "…") > NAME_WIDTH:
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
