"""SIGINT and SIGTERM as requests that the training loop handles between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether the run was asked to stop."""

    asked = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Inside, SIGINT and SIGTERM ask to stop; a second SIGINT interrupts immediately."""
    stop, before = Stop(), {}

    def ask(number: int, frame: object) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread, which alone may handle signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
