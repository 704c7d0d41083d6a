"""A folder of generated images: what is written there, and what of it may be replaced.

DIR/images/00000_3.png  00001_7.png  …    index and class; nothing else: any tool can take the folder
DIR/grid.png                              all at a glance
DIR/manifest.json                         the settings, and the class of every image; `complete` once all are there
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
LONGEST = 60  # letters of a class in a file's name: few enough for any file system


def image_name(index: int, name: str) -> str:
    """The file of an image of the class `name`, of which letters, digits, `.`, `+` and `-` are kept.

    >>> image_name(7, "3"), image_name(12345, "Siamese cat, wild/tame")
    ('00007_3.png', '12345_Siamese_cat_wild_tame.png')
    """
    kept = re.sub(r"[^\w.+-]+", "_", name)[:LONGEST]
    return f"{index:05d}_{kept or '_'}.png"


class ImagesFolder:
    """Where images go."""

    def __init__(self, path: Path) -> None:
        self.path, self.images, self.grid = path, path / IMAGES, path / GRID
        self.manifest = path / MANIFEST

    def check(self, *, force: bool) -> None:
        """Touch nothing.

        Raises:
            UsageError: it is no folder, or not empty without `force`.
        """
        with system_errors(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise UsageError("is no folder", where=str(self.path), hint="--out names a folder")
            if self.path.exists() and any(self.path.iterdir()) and not force:
                hint = "--force replaces generated images, --out names another folder"
                raise UsageError("the folder is not empty", where=str(self.path), hint=hint)

    def begin(self, settings: Mapping[str, Any], images: Mapping[str, str]) -> None:
        """Remove what an earlier run wrote or was writing, and nothing else; say which images are about to come.

        Args:
            settings: for the manifest.
            images: file name → class.
        """
        with system_errors(self.path):
            self.images.mkdir(parents=True, exist_ok=True)
            for name in self._images_of_before():
                (self.images / name).unlink(missing_ok=True)
            self.grid.unlink(missing_ok=True)
            for path in self._left_over():
                path.unlink(missing_ok=True)
        write_json(self.manifest, {**settings, "images": dict(images), "complete": False})

    def holds(self, settings: Mapping[str, Any], images: Mapping[str, str]) -> bool:
        """Whether all these images, made with these very settings, are there already, and no others."""
        try:
            listed = json.loads(self.manifest.read_text())
        except (OSError, ValueError):
            return False
        wanted = json.loads(json.dumps({**settings, "images": dict(images), "complete": True}))
        there = {path.name for path in self.images.iterdir()} if self.images.is_dir() else set()
        return bool(listed == wanted and there == set(images))

    def write(self, name: str, content: bytes) -> None:
        """An image, whole or not at all."""
        write_atomic(self.images / name, content)

    def finish(self, settings: Mapping[str, Any], images: Mapping[str, str], grid: bytes) -> None:
        """The grid, and a manifest that says that everything is there."""
        write_atomic(self.grid, grid)
        write_json(self.manifest, {**settings, "images": dict(images), "complete": True})

    def _left_over(self) -> list[Path]:
        """Temporary files of one that was killed while it wrote."""
        own = (path for name in (GRID, MANIFEST) for path in self.path.glob(f".{name}.*.tmp"))
        return [*own, *self.images.glob(".[0-9]*.png.*.tmp")]

    def _images_of_before(self) -> Sequence[str]:
        """The images that the manifest lists, if that is one; it cannot name anything else."""
        try:
            listed = json.loads(self.manifest.read_text())["images"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [name for name in listed if isinstance(name, str) and IMAGE.fullmatch(name)]
