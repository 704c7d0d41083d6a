"""What a file says of itself: a SHA-256 in its metadata over everything else in it, names, numbers and words."""

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
    """The metadata, and in it the checksum of them and the tensors."""
    return {**metadata, CHECKSUM: checksum(tensors, metadata)}


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over metadata but for the checksum itself, and over name, dtype, shape and bytes of tensors, by name."""
    said = {name: text for name, text in metadata.items() if name != CHECKSUM}
    return hashlib.sha256((json.dumps(said, sort_keys=True) + digest_tensors(tensors)).encode()).hexdigest()


def check(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Refuse a file that is not what it was when it was written.

    A checksum over the tensors alone, as files from before the first release have it, counts too.

    Raises:
        UsageError: it has another checksum, or none.
    """
    if metadata.get(CHECKSUM) not in (checksum(tensors, metadata), digest_tensors(tensors)):
        message = "the checksum does not match what is in the file"
        raise UsageError(message, where=str(path), hint="it was altered or damaged: copy or train it again")


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of tensors, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
