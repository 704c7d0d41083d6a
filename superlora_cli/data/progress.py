"""A bar for what takes long, on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from superlora_cli.launch import shows_bars

PATIENCE = 2.0  # seconds before it is shown
T = TypeVar("T")


def with_bar(parts: Iterable[T], words: str, *, total: int, size: Callable[[T], int]) -> Iterator[T]:
    """The parts of some work, with a bar on a terminal from `PATIENCE` on.

    Args:
        words: what is being done.
        total: how much it is.
        size: how much of it a part is.
    """
    columns = TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task, begun, shown = bar.add_task("", total=total), time.monotonic(), False
    with ExitStack() as stack:
        for part in parts:
            yield part
            bar.advance(task, size(part))
            if not shown and time.monotonic() - begun > PATIENCE and shows_bars():
                shown = True
                stack.enter_context(bar)
