"""Progress: a status or a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from superlora_cli.launch import speaks

BETWEEN_LINES = 15  # seconds between lines without a terminal
PATIENCE = 2.0  # seconds before `with_bar` shows its bar
T = TypeVar("T")
_hushed = ContextVar("hushed", default=False)


def shows_bars() -> bool:
    """Whether bars may be shown: only on a terminal, by the process that prints, and not inside `hushed`."""
    return sys.stderr.isatty() and speaks() and not _hushed.get()


@contextmanager
def hushed(quiet: bool) -> Iterator[None]:
    """If `quiet`, no bar is shown inside, however deep the call."""
    before = _hushed.set(quiet or _hushed.get())
    try:
        yield
    finally:
        _hushed.reset(before)


def doing(console: Console, what: str, *, quiet: bool = False) -> AbstractContextManager[Any]:
    """Show on a terminal what is being done while it lasts."""
    return nullcontext() if quiet else console.status(Text(what))


def with_bar(parts: Iterable[T], words: str, *, total: int, size: Callable[[T], int]) -> Iterator[T]:
    """Iterate over parts of some work, with a bar on a terminal after `PATIENCE`.

    Args:
        words: what is being done.
        total: amount of all work.
        size: amount of work in a part.
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


class LiveDisplay:
    """A context manager that shows `progress`."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.spoken = progress, time.monotonic()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def due(self, *, last: bool = False) -> bool:
        """Whether a line should be printed now instead of a bar; calling this counts as printing it."""
        if not self.progress.disable or not (last or time.monotonic() - self.spoken > BETWEEN_LINES):
            return False
        self.spoken = time.monotonic()
        return True


class LiveTable:
    """A context manager that shows a table of many jobs on a terminal, and lines; with `quiet`, neither."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.began: dict[str, float] = {}  # id → start time of the active jobs

    def __enter__(self) -> Self:
        self.live = Live(get_renderable=self.table, console=self.console, refresh_per_second=2, transient=True)
        if not self.quiet and self.console.is_terminal:
            self.live.start()
        self.say(self.title())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def title(self) -> str:
        """The first line."""
        raise NotImplementedError

    def table(self) -> RenderableType:
        """What is shown now."""
        raise NotImplementedError

    def say(self, line: str) -> None:
        """Print a line above the table."""
        if not self.quiet:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
