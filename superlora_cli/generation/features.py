"""The features of a set of images: extracted once, then cached by the contents of images and weights."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.utils import get_featuresdict_from_dataset

from superlora_cli.errors import SuperLoraError, UsageError
from superlora_cli.files import write_atomic
from superlora_cli.generation.extractors import Extractor
from superlora_cli.generation.image_sets import ImageSet
from superlora_cli.progress import shows_bars
from superlora_cli.user_cache import make_room, mark_used, user_cache
from superlora_cli.weights.small import read_safetensors, safetensors_bytes

ROOM = 2**30  # bytes of cached features; the least recently used are removed
VERSION = "1"  # of the way from images to features; changing it invalidates the cache


@dataclass(frozen=True)
class Features:
    """The features of a set of images.

    Attributes:
        logits: (n, C) float32.
        pooled: (n, d) float32.
        digest: SHA-256 of the images.
    """

    logits: Tensor
    pooled: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.pooled)


def extract(images: ImageSet, extractor: Extractor, *, batch_size: int = 64, device: str = "auto") -> Features:
    """The features of all images, from the user's cache if possible.

    Raises:
        UsageError: the images have different sizes, or the device is not available.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no GPU", where="train.device", hint="train.device=auto")
    digest = images.digest()
    layers = (extractor.logits, extractor.features)
    key = hashlib.sha256("\0".join([VERSION, digest, extractor.name, extractor.weights, *layers]).encode()).hexdigest()
    caches = user_cache()
    place = None if caches is None else caches / "features" / f"{key}.safetensors"
    found = None if place is None else _recall(place, layers, len(images))
    if found is None:
        found = _forward(images, extractor, batch_size, device)
        if place is not None:
            _remember(place, found)
    return Features(found[extractor.logits], found[extractor.features], digest)


def _forward(images: ImageSet, extractor: Extractor, batch_size: int, device: str) -> dict[str, Tensor]:
    """Every layer, (n, ·) float32 on the CPU, with a bar on a terminal."""
    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    extractor.module.to("cuda" if cuda else "cpu")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # the same features as on a CPU, to within 1e-5
        # save_cpu_ram: in this process, without workers
        found: dict[str, Tensor] = get_featuresdict_from_dataset(
            images, extractor.module, batch_size, cuda, save_cpu_ram=True, verbose=shows_bars()
        )
    return found


def _recall(path: Path, layers: tuple[str, ...], count: int) -> dict[str, Tensor] | None:
    """The cached features; None if there are none, or they are damaged."""
    try:
        tensors, metadata = read_safetensors(path)
    except SuperLoraError:
        return None
    mark_used(path)
    whole = all(name in tensors and len(tensors[name]) == count for name in layers)
    return tensors if whole and metadata.get("sha256") == _checksum(tensors) else None


def _remember(path: Path, features: Mapping[str, Tensor]) -> None:
    """Cache the features if possible: without them the next time is merely slower."""
    with contextlib.suppress(OSError, SuperLoraError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, safetensors_bytes(features, {"format": "pt", "sha256": _checksum(features)}), force=True)
        make_room(path.parent, ROOM)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        sha256.update(tensors[name].contiguous().numpy().tobytes())
    return sha256.hexdigest()
