"""Weights on disk, read one tensor at a time: a safetensors file, or shards with an index.

    with open_weights(Path("model.safetensors.index.json")) as weights:
        weights.shape("head.weight"), weights.tensor("head.weight")

Tensors are read into memory rather than mapped, so memory is freed with them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from superlora_cli.errors import UsageError
from superlora_cli.kinds import Kind, check_kind
from superlora_cli.weights import header
from superlora_cli.weights.header import Entry, Header

INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Shard:
    """One open safetensors file."""

    path: Path
    header: Header
    file: RawIOBase


class Weights:
    """Named tensors of one or several open files, read on demand.

    Attributes:
        shards: the files, in the order of the index.
        index: path of the index; None for a single file.
    """

    def __init__(self, shards: tuple[Shard, ...], home: Mapping[str, Shard], index: Path | None) -> None:
        self.shards, self.index, self._home = shards, index, home

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, shard by shard, in the order in the file."""
        return tuple(name for shard in self.shards for name in shard.header.entries if self._home.get(name) is shard)

    @property
    def metadata(self) -> dict[str, str]:
        """`__metadata__` of the file, or of all shards together."""
        return {key: value for shard in self.shards for key, value in shard.header.metadata.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def shard(self, name: str) -> Shard:
        """The file that holds a tensor."""
        return self._home[name]

    def entry(self, name: str) -> Entry:
        """The position of a tensor in its file."""
        return self._home[name].header.entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; KeyError if there is none with that name."""
        return self.entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor.

        Raises:
            UsageError: torch does not have it.
        """
        dtype = self.entry(name).dtype
        if dtype not in header.DTYPES:
            raise UsageError(f"{name} is stored as {dtype}, which cannot be read", where=str(self.shard(name).path))
        return header.DTYPES[dtype]

    def tensor(self, name: str) -> Tensor:
        """Read a tensor.

        Raises:
            UsageError: torch does not have its dtype, or the file has become shorter.
        """
        entry = self.entry(name)
        return self._read(name, entry.start, entry.bytes).view(entry.shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read rows `start`..`stop` of a tensor: (stop − start, ...). Raises as `tensor`."""
        entry = self.entry(name)
        return self._read(name, entry.start + start * entry.row, (stop - start) * entry.row).view(-1, *entry.shape[1:])

    def _read(self, name: str, start: int, size: int) -> Tensor:
        shard, dtype = self.shard(name), self.dtype(name)
        raw = torch.empty(size, dtype=torch.uint8)
        if not fill(shard.file.fileno(), raw.numpy().data, start):
            raise UsageError("the file was truncated while it was read", where=str(shard.path), hint="copy it again")
        return raw.view(dtype)


def fill(handle: int, space: memoryview, start: int) -> bool:
    """Read from byte `start` until `space` is full, in as many reads as needed. Returns False if the file ends first.

    Several threads may read the same file.
    """
    while len(space):
        got = os.preadv(handle, [space], start)
        if not got:
            return False
        space, start = space[got:], start + got
    return True


@contextmanager
def open_weights(path: Path) -> Iterator[Weights]:
    """The weights of a safetensors file, an index of shards, or a folder that holds either.

    Raises:
        UsageError: it is missing, truncated or not a safetensors file, or a shard or tensor of the index is missing.
    """
    path = resolve(path)
    known = (Kind.MODEL, Kind.WEIGHTS, Kind.INDEX, Kind.JSON)
    check_kind(path, "weights", known, "give a .safetensors file or an index of shards")
    with ExitStack() as opened:
        if path.name.endswith(".json"):
            yield _open_index(path, opened)
        else:
            shard = _open_shard(path, opened)
            yield Weights((shard,), dict.fromkeys(shard.header.entries, shard), None)


def resolve(path: Path) -> Path:
    """The file at `path`: the file itself or, in a folder, the index or else the only safetensors file.

    Raises:
        UsageError: there is none, or several without an index.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{INDEX}")) or sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if not found:
        check_kind(path, "weights", (Kind.FOLDER,))
        raise UsageError("holds no safetensors file", where=str(path), hint="give a folder with weights, or a file")
    names = ", ".join(one.name for one in found[:3])
    raise UsageError(
        f"holds {len(found)} files and no single index: {names}", where=str(path), hint="give one of the files"
    )


def _open_shard(path: Path, opened: ExitStack) -> Shard:
    if not path.is_file():
        raise UsageError(
            "no such file", where=str(path), hint="give a .safetensors file, an index of shards, or a folder"
        )
    try:
        with safe_open(path, framework="pt"):  # the library's own check of header and length
            file = opened.enter_context(path.open("rb", buffering=0))
            return Shard(path, header.parse(file), file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"not a valid safetensors file: {error}", where=str(path), hint="copy it again") from None


def _open_index(path: Path, opened: ExitStack) -> Weights:
    if not path.is_file():
        raise UsageError(
            "no such file", where=str(path), hint="give a .safetensors file, an index of shards, or a folder"
        )
    try:
        places = json.loads(path.read_text())["weight_map"]
        files = dict.fromkeys(places.values())
        if any(Path(file).name != file for file in files):
            raise ValueError("a shard in another folder")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        hint = 'expected JSON with a "weight_map" from tensor names to files in the same folder'
        raise UsageError(f"not an index of shards: {error}", where=str(path), hint=hint) from None
    shards: dict[str, Shard] = {}
    for file in files:
        if not (path.parent / file).is_file():
            missing = next(name for name, place in places.items() if place == file)
            raise UsageError(f"the shard {file}, which has {missing}, is missing", where=str(path))
        shards[file] = _open_shard(path.parent / file, opened)
    for name, file in places.items():
        if name not in shards[file].header.entries:
            raise UsageError(f"{name} is missing in its shard {file}", where=str(path), hint="copy it again")
    return Weights(tuple(shards.values()), {name: shards[file] for name, file in places.items()}, path)
