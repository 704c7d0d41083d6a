"""A folder of generated images: what is written to it, and what may be replaced.

DIR/images/00000_3.png  00001_7.png  …    index and class or prompt; nothing else, so that any tool can use the folder
DIR/grid.png                              all images in one
DIR/manifest.json                         the settings, and what every image shows; `complete` at the end
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from superlora_cli.errors import UsageError
from superlora_cli.files import system_errors, write_atomic, write_json

IMAGES, GRID, MANIFEST = "images", "grid.png", "manifest.json"
IMAGE = re.compile(r"\d{5,}_[^/\\\0]+\.png")
LONGEST = 60  # characters of a class in a file name: few enough for any file system


def image_name(index: int, name: str) -> str:
    """The file name of an image of a class or prompt, of which only letters, digits, `.`, `+` and `-` are used.

    >>> image_name(7, "3"), image_name(12345, "Siamese cat, wild/tame")
    ('00007_3.png', '12345_Siamese_cat_wild_tame.png')
    """
    plain = re.sub(r"[^\w.+-]+", "_", name)[:LONGEST]
    return f"{index:05d}_{plain or '_'}.png"


class ImagesFolder:
    """The folder for generated images."""

    def __init__(self, path: Path) -> None:
        self.path, self.images, self.grid = path, path / IMAGES, path / GRID
        self.manifest = path / MANIFEST

    def check(self, *, force: bool) -> None:
        """Check that images can be written, without changing anything.

        Raises:
            UsageError: it is not a folder, or is not empty (without `force`).
        """
        with system_errors(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise UsageError("is not a folder", where=str(self.path), hint="--out must be a folder")
            if self.path.exists() and any(self.path.iterdir()) and not force:
                hint = "--force replaces generated images; or choose another --out"
                raise UsageError("the folder is not empty", where=str(self.path), hint=hint)

    def begin(self, settings: Mapping[str, Any], images: Mapping[str, Any]) -> None:
        """Remove the images and temporary files of earlier runs, and nothing else; list the images to come.

        Args:
            settings: for the manifest.
            images: file name → class, or prompt, seed and scale.
        """
        with system_errors(self.path):
            self.images.mkdir(parents=True, exist_ok=True)
            for name in self._images_of_before():
                (self.images / name).unlink(missing_ok=True)
            self.grid.unlink(missing_ok=True)
            for path in self._left_over():
                path.unlink(missing_ok=True)
        write_json(self.manifest, {**settings, "images": dict(images), "complete": False})

    def holds(self, settings: Mapping[str, Any], images: Mapping[str, Any]) -> bool:
        """Whether exactly these images, generated with the same settings, are already in the folder."""
        try:
            listed = json.loads(self.manifest.read_text())
        except (OSError, ValueError):
            return False
        wanted = json.loads(json.dumps({**settings, "images": dict(images), "complete": True}))
        there = {path.name for path in self.images.iterdir()} if self.images.is_dir() else set()
        return bool(listed == wanted and there == set(images))

    def write(self, name: str, content: bytes) -> None:
        """Write an image atomically."""
        write_atomic(self.images / name, content, force=True)

    def finish(self, settings: Mapping[str, Any], images: Mapping[str, Any], grid: bytes) -> None:
        """Write the grid, and a manifest that says that all images are complete."""
        write_atomic(self.grid, grid, force=True)
        write_json(self.manifest, {**settings, "images": dict(images), "complete": True})

    def _left_over(self) -> list[Path]:
        """Temporary files of a process that was killed while writing."""
        own = (path for name in (GRID, MANIFEST) for path in self.path.glob(f".{name}.*.tmp"))
        return [*own, *self.images.glob(".[0-9]*.png.*.tmp")]

    def _images_of_before(self) -> Sequence[str]:
        """The images listed in the manifest, if there is one; other names in it are ignored."""
        try:
            listed = json.loads(self.manifest.read_text())["images"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [name for name in listed if isinstance(name, str) and IMAGE.fullmatch(name)]
