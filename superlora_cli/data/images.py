"""Reads an image file of any format as 8-bit RGB, oriented as intended."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from superlora_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

# Files in a folder that count as images. Pillow cannot read HEIC, but such files are reported rather than ignored.
SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff",
            ".webp")  # fmt: skip
APPLE = "__MACOSX"  # folder of macOS's own files in an archive

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

# Pillow warns about odd metadata of images that it reads well; all that matters is whether an image can be read.
warnings.filterwarnings("ignore", module=r"PIL\.")


def is_own(name: str | Path) -> bool:
    """Whether a file or folder, named relative to the data's folder, is the user's own: neither hidden nor macOS's.

    >>> is_own("cats/1.png"), is_own("cats/.thumbnails/1.png"), is_own("__MACOSX/cats/1.png")
    (True, False, False)
    """
    return not any(part.startswith(".") or part == APPLE for part in Path(name).parts)


def open_rgb(file: str | Path | BinaryIO, *, name: str | None = None) -> Image.Image:
    """Read a complete image file as RGB (see `to_rgb`), rotated according to its EXIF data; first frame of animations.

    Args:
        file: a path, or an open binary file.
        name: what to call it in an error; default: the path.

    Raises:
        UsageError: it cannot be read completely.
    """
    try:
        return _read(file)
    except Exception as error:  # broken files make decoders raise anything
        hint = "replace or remove it"
        raise UsageError(f"cannot be read as an image: {_cause(error)}", where=name or str(file), hint=hint) from None


def why_unreadable(path: str | Path) -> str | None:
    """Why an image file cannot be read completely, in a few words; None if it can."""
    try:
        _read(path)
    except Exception as error:  # as above
        return _cause(error)
    return None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB: 16-bit grey is scaled to 8 bits, transparent areas become white."""
    if image.mode.startswith("I"):  # 16-bit; mode "I" is how Pillow before 11 opens 16-bit PNGs
        scaled = np.rint(np.asarray(image) / 257).clip(0, 255).astype(np.uint8)  # 65535 → 255
        return Image.fromarray(scaled).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


def _read(file: str | Path | BinaryIO) -> Image.Image:
    if isinstance(file, str | Path) and os.path.exists(file) and not os.path.isfile(file):
        raise OSError("a folder, a pipe or a device")  # reading a pipe would block forever
    with Image.open(file) as image:
        image.load()
        with contextlib.suppress(Exception):  # damaged EXIF data of an intact image
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def _cause(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text repeats the path
        return "unknown format, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def size_of(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file as `open_rgb` would read it, from its header alone."""
    with Image.open(path) as image:
        sideways = image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
        return (image.height, image.width) if sideways else image.size


def cropped(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """The middle of an image, resized to `size`, width and height: (3, H, W) in [−1, 1]."""
    width, height = size
    scale = max(width / image.width, height / image.height)
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (left, top, left + width / scale, top + height / scale)
    import torch  # slow, and commands that only look for images do without

    pixels = np.array(image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=None))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
