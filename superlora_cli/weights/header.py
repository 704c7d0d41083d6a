"""The header of a safetensors file: its length in eight bytes, and JSON with the position of each tensor.

The library writes whole files and reads whole tensors. It does not expose the positions of their bytes, which are
needed to copy a file piece by piece.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import RawIOBase
from typing import Any

import torch

from superlora_cli.files import canonical

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor: its dtype as spelled in the format, its shape, and its bytes `start`..`stop` in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        """Its size in bytes."""
        return self.stop - self.start

    @property
    def row(self) -> int:
        """The size in bytes of one row of the first axis."""
        return self.bytes // self.shape[0] if self.shape and self.shape[0] else self.bytes


@dataclass(frozen=True)
class Header:
    """The positions of all tensors in one file.

    Attributes:
        raw: the bytes of the file before the first tensor.
        metadata: `__metadata__`.
        entries: by tensor name, in the order in the file.
    """

    raw: bytes
    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]

    @property
    def bytes(self) -> int:
        """The length of the whole file."""
        return max((entry.stop for entry in self.entries.values()), default=len(self.raw))


def parse(file: RawIOBase) -> Header:
    """The header of an open file, which the library has already checked."""
    length = file.read(8) or b""
    text = file.read(struct.unpack("<Q", length)[0]) or b""
    content: dict[str, Any] = json.loads(text)
    metadata = content.pop("__metadata__", None) or {}
    first = 8 + len(text)
    entries = {
        name: Entry(about["dtype"], tuple(about["shape"]), *(first + offset for offset in about["data_offsets"]))
        for name, about in content.items()
    }
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    return Header(length + text, metadata, ordered)


def build(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> Header:
    """The header of a file to be written, in a form that depends on its content only.

    Args:
        tensors: (name, dtype as spelled in the format, shape). In the file they are sorted by width of the dtype,
            widest first, as in the library, so that all are aligned; then by name.
    """
    content: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, dtype, shape in sorted(tensors, key=lambda tensor: (-DTYPES[tensor[1]].itemsize, tensor[0])):
        size = math.prod(shape) * DTYPES[dtype].itemsize
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = canonical(content).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    entries = {
        name: Entry(about["dtype"], tuple(about["shape"]), *(first + offset for offset in about["data_offsets"]))
        for name, about in content.items()
        if name != "__metadata__"
    }
    return Header(struct.pack("<Q", len(text)) + text, dict(metadata), entries)
