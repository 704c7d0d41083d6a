"""Small safetensors files, such as adapters, that are written and read in one go."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from superlora_cli.errors import UsageError
from superlora_cli.files import canonical


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose bytes depend on its content only (the library shuffles the metadata)."""
    raw = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata))
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = canonical(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    The file is read in one go: `safe_open` opens it twice, which could be two files if it is replaced in between.

    Raises:
        UsageError: it is missing, truncated or not a safetensors file.
    """
    if not path.is_file():
        raise UsageError("no such file", where=str(path), hint="give a .safetensors file, or a run folder with one")
    try:
        content = path.read_bytes()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, dict(header.get("__metadata__") or {})
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        hint = "copy it again, or train again"
        raise UsageError(f"not a valid safetensors file: {error}", where=str(path), hint=hint) from None
