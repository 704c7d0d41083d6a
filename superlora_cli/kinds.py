"""Recognises what a path is, so that errors can say so when something else was expected."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path

from superlora_cli.errors import UsageError

LOOKED_AT = 1_000_000  # most bytes read of a text
CHILDREN = 200  # most entries read of a folder
IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ADAPTER_MARK, MODEL_MARK = "superlora.format_version", "superlora.model_recipe"  # in a safetensors header
CHECKSUM = "superlora.checksum"
RECIPE_KEYS = {"model", "train", "task", "data", "adapter"}
SWEEP_KEYS = {"recipe", "grid", "runs", "seeds", "set", "measure", "skip_impossible"}


class Kind(StrEnum):
    """Things that superlora and its users have, in the words of error messages."""

    RECIPE = "a recipe"
    SWEEP = "a sweep file"
    ADAPTER = "a superlora adapter"
    MODEL = "a model that superlora trained"
    WEIGHTS = "a safetensors file"
    INDEX = "an index of shards"
    TORCH = "a PyTorch file"
    IMAGE = "an image"
    JSON = "a JSON file"
    TEXT = "a text file"
    RUN = "a run folder"
    CHECKPOINT = "a checkpoint folder"
    SWEEP_FOLDER = "a sweep folder"
    RUNS = "a folder of runs"
    IMAGES = "a folder of images"
    SHARDS = "a folder of weights"
    PEFT = "a PEFT adapter"
    FOLDER = "a folder"


USES = {
    Kind.RECIPE: "superlora train {path} trains it",
    Kind.SWEEP: "superlora sweep {path} runs it",
    Kind.ADAPTER: "superlora inspect {path} shows what is in it",
    Kind.MODEL: "superlora eval {path} evaluates it",
    Kind.TORCH: "convert it to a .safetensors file with safetensors.torch.save_file",
    Kind.IMAGE: "superlora eval RUN --predict FOLDER predicts the classes of images",
    Kind.RUN: "its recipe is {path}/recipe.yaml, its result the .safetensors file next to that",
    Kind.CHECKPOINT: "its adapter is {path}/adapter.safetensors",
    Kind.SWEEP_FOLDER: "give one of the runs in {path}/runs, or use superlora report {path}",
    Kind.RUNS: "give one of them, or use superlora report {path}",
    Kind.IMAGES: "superlora init --data {path} writes a recipe for them",
}


def kind_of(path: Path) -> Kind | None:
    """What is at a path; None if there is nothing, or it cannot be read or recognised.

    >>> kind_of(Path("no/such/file")) is None
    True
    """
    try:
        if path.is_dir():
            return _folder(path)
        return _file(path) if path.is_file() else None
    except (OSError, ValueError):
        return None


def check_kind(path: Path, wanted: str, allowed: Collection[Kind], hint: str | None = None) -> None:
    """Refuse a path that is known to be something other than what is `wanted`.

    Args:
        allowed: kinds that may be right; the code that reads them gives more precise errors.
        hint: what would be right, for kinds that have no hint of their own.

    Raises:
        UsageError: it is something else; says what it is, and what to do with it.
    """
    kind = kind_of(path)
    if kind is not None and kind not in allowed:
        use = USES[kind].format(path=shlex.quote(str(path))) if kind in USES else hint
        raise UsageError(f"is {kind}, not {wanted}", where=str(path), hint=use)


def _folder(path: Path) -> Kind:
    names = {child.name for child, _ in zip(path.iterdir(), range(CHILDREN), strict=False)}
    if {"recipe.yaml", "run.json"} <= names:
        return Kind.RUN
    if "sweep.yaml" in names:
        return Kind.SWEEP_FOLDER
    if {"state.pt", "COMPLETE"} <= names:
        return Kind.CHECKPOINT
    if "adapter_config.json" in names:
        return Kind.PEFT
    if any((path / name / "run.json").is_file() for name in names):
        return Kind.RUNS
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return Kind.SHARDS
    inside = [path, *(child for name in sorted(names) if (child := path / name).is_dir())]
    if any(_is_image(child) for folder in inside for child, _ in zip(folder.iterdir(), range(CHILDREN), strict=False)):
        return Kind.IMAGES
    return Kind.FOLDER


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS


def _file(path: Path) -> Kind | None:
    with path.open("rb") as file:
        raw = file.read(LOOKED_AT)
    if raw.startswith(IMAGES) or raw[8:12] == b"WEBP":
        return Kind.IMAGE
    if raw.startswith((b"PK\x03\x04", b"\x80\x02")):
        return Kind.TORCH
    if raw[8:9] == b"{" and int.from_bytes(raw[:8], "little") < 2**40:
        return _safetensors(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return _text(text) if text.strip() and "\0" not in text else None


def _safetensors(raw: bytes) -> Kind:
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    if f'"{ADAPTER_MARK}"'.encode() in header:
        return Kind.ADAPTER
    return Kind.MODEL if f'"{MODEL_MARK}"'.encode() in header else Kind.WEIGHTS


def _text(text: str) -> Kind:
    try:
        content = json.loads(text)
    except ValueError:
        keys = set(re.findall(r"^([a-z_]+) *:", text, re.MULTILINE))
    else:
        keys = set(content) if isinstance(content, dict) else set()
        if "weight_map" in keys:
            return Kind.INDEX
        if not keys & RECIPE_KEYS or "recipe" in keys:
            return Kind.JSON
    if keys & RECIPE_KEYS:
        return Kind.RECIPE
    return Kind.SWEEP if keys & SWEEP_KEYS else Kind.TEXT
