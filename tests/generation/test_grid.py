"""The grid shows every image where its class says, enlarged pixel for pixel, and is the same bytes every time."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from superlora_cli.generation.grid import CELL, COLUMNS, MARGIN, ROWS, labelled_grid, png

NAMES = ["zero", "one", "two"]


def shades(count: int, size: int = 16) -> torch.Tensor:
    """Images of one colour each: (count, 3, size, size)."""
    colours = torch.stack([torch.tensor([10 + 7 * i, 200 - 7 * i, 5 * i]) for i in range(count)])
    return colours.to(torch.uint8)[:, :, None, None].expand(count, 3, size, size).contiguous()


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_a_png_gives_the_pixels_back_and_is_the_same_bytes_every_time() -> None:
    image = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
    assert png(image) == png(image.clone())
    assert np.array_equal(opened(png(image)), image.permute(1, 2, 0).numpy())


def test_rows_are_classes_and_images_are_enlarged() -> None:
    sheet = opened(labelled_grid(shades(6), [2, 0, 2, 0, 2, 0], NAMES))
    cell = CELL + MARGIN
    assert len(sheet) == MARGIN + 2 * cell
    for index, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]):
        left = sheet.shape[1] - (3 - column) * cell
        seen = sheet[MARGIN + row * cell : MARGIN + row * cell + CELL, left : left + CELL]
        assert (seen == shades(6)[index, :, 0, 0].numpy()).all()


def test_every_pixel_of_an_image_becomes_a_square() -> None:
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    sheet = opened(labelled_grid(image, [0], NAMES))
    seen = sheet[MARGIN : MARGIN + CELL, sheet.shape[1] - CELL - MARGIN : sheet.shape[1] - MARGIN]
    assert np.array_equal(seen, image[0].permute(1, 2, 0).numpy().repeat(4, 0).repeat(4, 1))


def test_large_images_stay_as_they_are() -> None:
    sheet = opened(labelled_grid(shades(1, 100), [0], NAMES))
    assert len(sheet) == MARGIN + 100 + MARGIN


def test_names_and_caption_are_drawn() -> None:
    plain, named, captioned = (
        opened(labelled_grid(shades(3), [0, 1, 2], names, caption))
        for names, caption in ((["", "", ""], ""), (NAMES, ""), (NAMES, "a model, " * 20))
    )
    assert plain.shape[1] < named.shape[1]
    assert len(captioned) > len(named)
    assert captioned.shape[1] < 250  # wrapped
    assert (named[:, : named.shape[1] - CELL - 2 * MARGIN] < 128).any()


def test_a_grid_is_the_same_bytes_every_time() -> None:
    one = labelled_grid(shades(6), [0, 1, 2] * 2, NAMES, "caption")
    assert one == labelled_grid(shades(6), [0, 1, 2] * 2, NAMES, "caption")


@pytest.mark.parametrize("name", ["größe\n/ x", "x" * 500, "数字"])
def test_any_name_and_any_number_of_images_make_a_picture(name: str) -> None:
    sheet = opened(labelled_grid(shades(3).repeat(20, 1, 1, 1), [0] * 60, [name]))
    assert sheet.shape[1] < COLUMNS * (CELL + MARGIN) + 250
    many = opened(labelled_grid(shades(1, 1).repeat(70, 1, 1, 1), range(70), [name] * 70))
    assert len(many) == MARGIN + ROWS * (CELL + MARGIN)
