"""A sweep's workers that cost no import: forked from a process that has imported everything."""

from __future__ import annotations

import multiprocessing
from typing import Any


def forked() -> None:
    """A sweep's workers are forked from a process that has imported everything."""
    import superlora_cli.sweeping.local as local

    local.get_context = Forking  # type: ignore[assignment,misc]


class Forking:
    """As multiprocessing's context `spawn`, as far as a sweep needs it."""

    def __init__(self, method: str) -> None:
        self.context = multiprocessing.get_context("fork")

    def Pipe(self) -> Any:  # noqa: N802
        """Two ends."""
        self.ours, theirs = self.context.Pipe()
        return self.ours, theirs

    def Process(self, target: Any, args: Any) -> Any:  # noqa: N802
        """A process that has nothing of our end of the pipe, as a spawned one."""

        def alone() -> None:
            self.ours.close()
            target(*args)

        return self.context.Process(target=alone)
