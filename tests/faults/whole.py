"""Whether files are whole: under a final name there is never half of one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors.torch import load

GROWING = ("metrics.jsonl", "log.txt", "workers.log")  # grow a line at a time: of these the last may be torn


def half_written(place: Path) -> str | None:
    """The first file in a folder that is not whole, and why; hidden ones are still being written."""
    for path in sorted(place.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
        if path.is_file() and not hidden and path.name not in GROWING:
            check = KINDS.get(path.suffix, _not_empty)
            try:
                check(path)
            except Exception as error:  # decoders raise anything
                return f"{path.relative_to(place)} is not whole: {type(error).__name__}: {error}"
    return None


def left_over(place: Path) -> list[str]:
    """Temporary files and folders below a folder."""
    return sorted(str(path.relative_to(place)) for path in place.rglob(".*.tmp"))


def _image(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _not_empty(path: Path) -> None:
    if not path.stat().st_size:
        raise ValueError("empty")


KINDS: dict[str, Callable[[Path], object]] = {
    ".safetensors": lambda path: load(path.read_bytes()),
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".yaml": lambda path: yaml.safe_load(path.read_text()),
    ".csv": lambda path: list(csv.reader(io.StringIO(path.read_text()), strict=True)),
    ".png": _image,
}
