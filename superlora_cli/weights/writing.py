"""Write files of weights: first their headers, then tensor by tensor in any order.

    with replacing(out, force=True) as temporary, Draft(out) as draft:
        draft.lay_out(temporary, header.build([("w", "F32", (2, 3))], {}))
        draft.write("w", torch.zeros(2, 3))

So a file of any size only needs memory for one tensor, or for some rows of one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from superlora_cli.errors import UsageError
from superlora_cli.files import system_errors
from superlora_cli.weights.header import Entry, Header
from superlora_cli.weights.reading import Shard

CHUNK = 2**24  # bytes copied at a time
SETTLED = 2**26  # bytes synced to the disk at a time
CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # the system cannot copy these files by itself


class Draft:
    """One or several files being written.

    Args:
        out: the final name, for errors.
        progress: called with the number of bytes written.

    Every method that writes raises RunError if the disk is full, and UsageError if the system refuses.
    """

    def __init__(self, out: Path, progress: Callable[[int], object] = lambda count: None) -> None:
        self.out, self.progress = out, progress
        self._handles: list[int] = []
        self._stopped = False
        self._written = self._settled = 0
        self._home: dict[str, tuple[int, Entry]] = {}

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            os.close(handle)

    def stop(self) -> None:
        """Make a copy in another thread end soon, unfinished."""
        self._stopped = True

    @property
    def unsettled(self) -> bool:
        """Whether enough has been written for a `settle`."""
        return self._written - self._settled >= SETTLED

    def settle(self) -> None:
        """Sync what has been written, in another thread, so that little is left for the end."""
        self._settled = self._written
        with system_errors(self.out):
            for handle in self._handles:
                os.fsync(handle)

    def lay_out(self, file: Path, header: Header) -> None:
        """Begin a file by writing its header, which fixes the positions of its tensors."""
        with system_errors(self.out):
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            self._handles.append(handle)
            _write(handle, memoryview(header.raw), 0)
        self._home |= {name: (handle, entry) for name, entry in header.entries.items()}

    def write(self, name: str, rows: Tensor, first: int = 0) -> None:
        """Write a tensor, or some rows of it from row `first` on, in the dtype of the header."""
        handle, entry = self._home[name]
        data = rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        with system_errors(self.out):
            _write(handle, data, entry.start + first * entry.row)
        self._advance(len(data))

    def copy(self, name: str, shard: Shard, skip: Sequence[tuple[int, int]] = ()) -> None:
        """Copy the bytes of a tensor from another file, except the rows (start, stop) in `skip`.

        Raises:
            UsageError: the other file has become shorter.
        """
        handle, entry = self._home[name]
        source = shard.header.entries[name]
        at = 0
        for start, stop in (*sorted(skip), (None, None)):
            end = entry.bytes if start is None else start * entry.row
            while at < end and not self._stopped:
                with system_errors(self.out):
                    done = _move(shard.file.fileno(), source.start + at, handle, entry.start + at, min(end - at, CHUNK))
                if not done:
                    raise UsageError(
                        "the file was truncated while it was read", where=str(shard.path), hint="copy it again"
                    )
                self._advance(done)
                at += done
            at = max(at, stop * entry.row) if stop is not None else at

    def _advance(self, count: int) -> None:
        self._written += count
        self.progress(count)


def _write(handle: int, data: memoryview, at: int) -> None:
    while len(data):
        done = os.pwrite(handle, data, at)
        data, at = data[done:], at + done


def _move(source: int, at: int, target: int, to: int, count: int) -> int:
    """Copy up to `count` bytes between two open files, by the system if it can; returns how many were copied."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count, at, to)
        except OSError as error:
            if error.errno not in CANNOT:
                raise
    data = os.pread(source, count, at)
    _write(target, memoryview(data), to)
    return len(data)
