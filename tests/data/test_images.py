"""Whatever image people have is read the way it is meant to be seen."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from superlora_cli.data.images import open_rgb, why_unreadable
from superlora_cli.errors import UsageError
from tests.data.conftest import picture

COLOURS = [(255, 0, 0), (0, 128, 255)]  # left and right


def two_halves(mode: str, left: Any, right: Any, side: int = 8) -> Image.Image:
    """An image of two colours."""
    image = Image.new(mode, (2 * side, side), right)
    image.paste(left, (0, 0, side, side))
    return image


def seen(image: Image.Image, path: Path, **how: Any) -> tuple[Any, Any]:
    """The colours of both halves, after writing and reading."""
    image.save(path, **how)
    read = open_rgb(path)
    assert read.mode == "RGB"
    assert read.size == image.size
    return read.getpixel((3, 4)), read.getpixel((read.width - 4, 4))


@pytest.mark.parametrize(
    ("mode", "suffix", "left", "right", "expected"),
    [
        ("RGB", "png", *COLOURS, tuple(COLOURS)),
        ("RGB", "webp", (255, 255, 255), (0, 0, 0), ((255,) * 3, (0,) * 3)),
        ("L", "png", 7, 200, ((7,) * 3, (200,) * 3)),
        ("L", "jpg", 0, 200, ((0,) * 3, (200,) * 3)),
        ("1", "png", 0, 1, ((0,) * 3, (255,) * 3)),
        ("1", "tif", 0, 1, ((0,) * 3, (255,) * 3)),
        ("I;16", "png", 65535, 32768, ((255,) * 3, (128,) * 3)),
        ("I;16", "tif", 257, 65535, ((1,) * 3, (255,) * 3)),
        ("I;16B", "tif", 257, 65535, ((1,) * 3, (255,) * 3)),
        ("LA", "png", (0, 255), (0, 0), ((0,) * 3, (255,) * 3)),
        ("RGBA", "png", (255, 0, 0, 255), (0, 0, 0, 0), ((255, 0, 0), (255,) * 3)),
        ("RGBA", "tif", (255, 0, 0, 255), (0, 0, 0, 0), ((255, 0, 0), (255,) * 3)),
        ("CMYK", "tif", (0, 255, 255, 0), (0, 0, 0, 255), ((255, 0, 0), (0, 0, 0))),
    ],
)
def test_every_mode_is_read_as_displayed(
    mode: str, suffix: str, left: Any, right: Any, expected: Any, tmp_path: Path
) -> None:
    image = two_halves("I;16" if mode == "I;16B" else mode, left, right)
    if mode == "I;16B":
        image = Image.frombytes("I;16B", image.size, np.asarray(image).astype(">u2").tobytes())
    assert seen(image, tmp_path / f"image.{suffix}") == expected


def test_half_transparent_red_is_pink(tmp_path: Path) -> None:
    left, _ = seen(two_halves("RGBA", (255, 0, 0, 128), (0, 0, 0, 255)), tmp_path / "image.png")
    np.testing.assert_allclose(left, (255, 127, 127), atol=1)


def test_cmyk_photos_keep_their_colours(tmp_path: Path) -> None:
    left, right = seen(two_halves("RGB", *COLOURS).convert("CMYK"), tmp_path / "image.jpg", quality=95)
    np.testing.assert_allclose((left, right), COLOURS, atol=12)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_the_transparent_colour_of_a_palette_is_white(suffix: str, tmp_path: Path) -> None:
    image = two_halves("P", 0, 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert seen(image, tmp_path / f"image.{suffix}", transparency=1) == ((255, 0, 0), (255, 255, 255))
    assert seen(image, tmp_path / f"opaque.{suffix}") == ((255, 0, 0), (0, 0, 255))


def test_a_palette_with_shades_of_transparency(tmp_path: Path) -> None:
    image = two_halves("P", 0, 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert seen(image, tmp_path / "image.png", transparency=b"\xff\x00") == ((255, 0, 0), (255, 255, 255))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_read_as_its_first_frame(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black", "black")]
    how = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], duration=50, **how)
    assert open_rgb(tmp_path / f"moving.{suffix}").getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize(("orientation", "turn"), [(1, None), (3, 180), (6, 270), (8, 90)])
def test_a_photo_is_rotated_by_its_orientation(orientation: int, turn: int | None, tmp_path: Path) -> None:
    image, exif = picture(0), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    wanted = image if turn is None else image.rotate(turn, expand=True)  # 6: the camera was turned left
    np.testing.assert_array_equal(np.asarray(open_rgb(tmp_path / "photo.png")), np.asarray(wanted))


def test_damaged_metadata_around_a_whole_image_do_not_matter(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "photo.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x12\x01\x03")
    assert open_rgb(tmp_path / "photo.jpg").size == (24, 20)


def broken(kind: str) -> bytes:
    stream = io.BytesIO()
    picture(0, side=200).save(stream, "jpeg" if kind == "truncated" else "png")
    whole = stream.getvalue()
    return {"empty": b"", "text": b"no image", "truncated": whole[:-2000], "flipped": whole[:3000] + whole[3100:]}[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "flipped"])
def test_broken_images_are_one_line_errors(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(broken(kind))
    cause = why_unreadable(path)
    assert cause
    assert str(tmp_path) not in cause
    with pytest.raises(UsageError) as caught:
        open_rgb(path)
    assert str(caught.value) == f"{path}: cannot be read as an image: {cause} (replace or remove it)"


def test_a_pipe_is_not_an_image_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert why_unreadable(tmp_path / "pipe.png") == "a folder, a pipe or a device"


def test_a_missing_file(tmp_path: Path) -> None:
    assert why_unreadable(tmp_path / "none.png") == "No such file or directory"


def test_errors_about_bytes_use_the_given_name() -> None:
    with pytest.raises(UsageError, match=r"^image 3 of cats: cannot be read as an image"):
        open_rgb(io.BytesIO(b"no image"), name="image 3 of cats")
