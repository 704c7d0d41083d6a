"""A SHA-256 in the metadata of a file, over everything else in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from superlora_cli.errors import UsageError
from superlora_cli.kinds import CHECKSUM


def with_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata plus a checksum over them and the tensors."""
    return {**metadata, CHECKSUM: checksum(tensors, metadata)}


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata, except the checksum itself, and over name, dtype, shape and bytes of all tensors."""
    said = {name: text for name, text in metadata.items() if name != CHECKSUM}
    return hashlib.sha256((json.dumps(said, sort_keys=True) + digest_tensors(tensors)).encode()).hexdigest()


def check(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Refuse a file that has changed since it was written.

    A checksum over the tensors only, as in files from before the first release, is accepted too.

    Raises:
        UsageError: the checksum is missing or differs.
    """
    if metadata.get(CHECKSUM) not in (checksum(tensors, metadata), digest_tensors(tensors)):
        message = "the checksum does not match the contents of the file"
        raise UsageError(message, where=str(path), hint="it was changed or damaged: copy it again, or train again")


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
