"""How the command was launched, and who speaks: `torchrun` and `accelerate launch` start one command several times."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_hushed = ContextVar("hushed", default=False)


def launched() -> int:
    """The number of processes of this command, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this is the process that speaks for all: results and errors that all have are said once."""
    return os.environ.get("RANK", "0") == "0"


def shows_bars() -> bool:
    """Whether bars may be shown: on a terminal, by the process that speaks, if it is not `hushed`."""
    return sys.stderr.isatty() and speaks() and not _hushed.get()


@contextmanager
def hushed(quiet: bool) -> Iterator[None]:
    """Inside, no bar is shown if `quiet`, however deep down."""
    before = _hushed.set(quiet or _hushed.get())
    try:
        yield
    finally:
        _hushed.reset(before)
