"""One image, whatever its kind, as eight-bit RGB the way it is meant to be seen."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from superlora_cli.errors import UsageError

# What is taken for an image in a folder; of these HEIC is not read by Pillow: such files are named, not passed over.
SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff",
            ".webp")  # fmt: skip

# Pillow warns of odd metadata of images that it reads well; what matters is whether an image can be read.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_rgb(file: str | Path | BinaryIO, *, name: str | None = None) -> Image.Image:
    """Read an image file whole: `to_rgb`, after turning it as its EXIF data say; of an animation the first frame.

    Args:
        file: a path, or the bytes as an opened file.
        name: what to call it in an error; default: the path.

    Raises:
        UsageError: it cannot be read to its end.
    """
    try:
        return _read(file)
    except Exception as error:  # broken files make decoders raise anything
        hint = "replace or remove it"
        raise UsageError(f"no image that can be read: {_cause(error)}", where=name or str(file), hint=hint) from None


def why_unreadable(path: str | Path) -> str | None:
    """Why an image file cannot be read to its end, in a few words; None where it can."""
    try:
        _read(path)
    except Exception as error:  # as above
        return _cause(error)
    return None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB: 16-bit grey is scaled to 8 bits, what is transparent becomes white."""
    if image.mode.startswith("I"):  # 16-bit; mode "I" is how Pillow before 11 opens 16-bit PNGs
        scaled = np.rint(np.asarray(image) / 257).clip(0, 255).astype(np.uint8)  # 65535 → 255
        return Image.fromarray(scaled).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


def _read(file: str | Path | BinaryIO) -> Image.Image:
    if isinstance(file, str | Path) and os.path.exists(file) and not os.path.isfile(file):
        raise OSError("a folder, a pipe or a device")  # reading a pipe would wait for ever
    with Image.open(file) as image:
        image.load()
        with contextlib.suppress(Exception):  # damaged EXIF data around a whole image
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def _cause(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text repeats the path
        return "an unknown format, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__
