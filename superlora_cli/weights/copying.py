"""Copies of weights, from files or from a state dict, in which the caller changes some.

Both kinds of source know the size of the copy, read rows, and write themselves to a `Draft`. Changed rows are written
afterwards, or at the same time if the source `leaves` them out.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from superlora_cli.errors import RunError
from superlora_cli.files import json_text, system_errors
from superlora_cli.weights import header
from superlora_cli.weights.checksum import CHECKSUM
from superlora_cli.weights.header import Entry, Header
from superlora_cli.weights.reading import INDEX, Shard, Weights
from superlora_cli.weights.writing import Draft

BESIDE = (
    ".json",
    ".txt",
    ".model",
    ".jinja",
)  # configuration and tokenizer, which loaders of shards expect in the folder
ELEMENTS = 2**20  # cast at a time

Spans = Mapping[str, Sequence[tuple[int, int]]]  # tensor name → rows (start, stop)


class FromFiles:
    """A copy of a single file, or of shards with their index.

    Args:
        weights: the open files.
        dtype: dtype of the floating-point tensors in the copy; None: unchanged, as are the bytes of all tensors that
            are not replaced.
        replaced: tensors that replace those of the same name; new names are added to the last file.
    """

    def __init__(
        self, weights: Weights, *, dtype: torch.dtype | None = None, replaced: Mapping[str, Tensor] | None = None
    ) -> None:
        self.weights, self.dtype = weights, dtype
        self.replaced = {name: tensor.to(dtype or tensor.dtype) for name, tensor in (replaced or {}).items()}
        self.folder = weights.index is not None
        self._headers = [(shard, self._header(shard)) for shard in weights.shards]
        self.bytes = sum(header.bytes for _, header in self._headers)
        self.leaves = dtype is None

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the source."""
        return self.weights.rows(name, start, stop)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the copy."""
        replaced = self.replaced.get(name)
        return _cast(name, self.weights.tensor(name), self.dtype) if replaced is None else replaced

    def lay_out(self, draft: Draft, place: Path) -> None:
        """Begin the copy in `place`, an empty file, or a folder for shards.

        Raises:
            RunError: the disk is full. UsageError: a file cannot be written.
        """
        for shard, made in self._headers:
            draft.lay_out(place / shard.path.name if self.folder else place, made)
        if self.weights.index is not None:
            with system_errors(draft.out):
                self._beside(place, self.weights.index)

    def fill(self, draft: Draft, skip: Spans) -> None:
        """Write all tensors, without the rows in `skip` if the source `leaves` them out.

        Raises:
            RunError: the disk is full, or a cast is not finite. UsageError: a file cannot be read or written.
        """
        for shard, made in self._headers:
            for name, entry in made.entries.items():
                if name in self.replaced:
                    draft.write(name, self.replaced[name])
                elif entry.dtype == shard.header.entries[name].dtype:
                    draft.copy(name, shard, skip.get(name, ()))
                else:
                    self._cast(draft, name, entry)

    def _header(self, shard: Shard) -> Header:
        """The header of the copy; that of the shard, byte for byte, if no dtype or shape changes."""
        own = {name: (entry.dtype, entry.shape) for name, entry in shard.header.entries.items()}
        last = shard is self.weights.shards[-1]
        added = {name for name in self.replaced if name in own or (last and name not in self.weights)}
        new = {name: (self._dtype(dtype), shape) for name, (dtype, shape) in own.items()}
        new |= {n: (header.NAMES[self.replaced[n].dtype], tuple(self.replaced[n].shape)) for n in added}
        said = {key: text for key, text in shard.header.metadata.items() if key != CHECKSUM}  # it no longer holds
        if new == own and said == shard.header.metadata:
            return shard.header
        return header.build([(name, *about) for name, about in new.items()], said)

    def _dtype(self, own: str) -> str:
        floating = own in header.DTYPES and header.DTYPES[own].is_floating_point
        return header.NAMES[self.dtype] if self.dtype and floating else own

    def _cast(self, draft: Draft, name: str, entry: Entry) -> None:
        if not entry.shape:
            draft.write(name, _cast(name, self.weights.tensor(name), self.dtype))
            return
        step = max(1, ELEMENTS // max(1, math.prod(entry.shape[1:])))
        for start in range(0, entry.shape[0], step):
            rows = self.weights.rows(name, start, min(start + step, entry.shape[0]))
            draft.write(name, _cast(name, rows, self.dtype), start)

    def _beside(self, folder: Path, index: Path) -> None:
        """Write the index, with changed sizes and names, and copy the small files of its folder."""
        for file in sorted(index.parent.iterdir()):
            if file.is_file() and file.suffix in BESIDE and not file.name.endswith(INDEX):
                shutil.copyfile(file, folder / file.name)
        shutil.copyfile(index, folder / index.name)
        if all(shard.header is made for shard, made in self._headers):
            return
        content = json.loads(index.read_text())
        places = {name: shard.path.name for shard, made in self._headers for name in made.entries}
        size = sum(entry.bytes for _, made in self._headers for entry in made.entries.values())
        content["weight_map"], content["metadata"] = places, {**content.get("metadata", {}), "total_size": size}
        (folder / index.name).write_text(json_text(content))


class FromState:
    """A file with a state dict.

    Args:
        state: the tensors.
        dtype: dtype of the floating-point tensors in the file; None: unchanged.
        metadata: metadata of the file.
    """

    folder = leaves = False

    def __init__(self, state: Mapping[str, Tensor], *, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        self.state, self.dtype = {name: tensor.detach() for name, tensor in state.items()}, dtype
        dtypes = {n: dtype if dtype and t.is_floating_point() else t.dtype for n, t in state.items()}
        self.header = header.build([(n, header.NAMES[dtypes[n]], tuple(t.shape)) for n, t in state.items()], metadata)
        self.bytes = self.header.bytes

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the source."""
        return self.state[name][start:stop]

    def lay_out(self, draft: Draft, place: Path) -> None:
        """Begin the copy in the file `place`; raises as `FromFiles.lay_out`."""
        draft.lay_out(place, self.header)

    def fill(self, draft: Draft, skip: Spans) -> None:
        """Write all tensors; raises as `FromFiles.fill`."""
        for name in self.header.entries:
            draft.write(name, _cast(name, self.state[name], self.dtype))


def _cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Cast a floating-point tensor to `dtype`, unless that is None; other tensors are unchanged.

    Raises:
        RunError: a value is too large for the dtype.
    """
    if dtype is None or dtype == tensor.dtype or not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if not torch.isfinite(cast).all():
        raise RunError(f"not finite as {str(dtype).removeprefix('torch.')}", where=name, hint="--dtype bfloat16")
    return cast


Source = FromFiles | FromState
