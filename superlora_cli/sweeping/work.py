"""What is handed to a worker, and what it hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

WORK = "superlora_cli.commands.sweep:carry_out"  # Job → Outcome; by name, since importing it takes seconds


@dataclass(frozen=True)
class Job:
    """One run to be carried out.

    Attributes:
        id: the run's.
        folder: where it goes, absolute.
        recipe: as plain data.
        measure: as the sweep's `measure` section, seed included; None for no measuring.
        threads: CPU threads that it takes.
        wait: seconds to wait for another run that is in the folder.
    """

    id: str
    folder: str
    recipe: Mapping[str, Any]
    measure: Mapping[str, Any] | None
    threads: int
    wait: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `busy` if another process is at it. `error` is one line, None for a completed run."""

    status: Literal["completed", "failed", "interrupted", "busy"]
    error: str | None = None


@dataclass(frozen=True)
class Event:
    """A job was begun (no outcome), or has ended."""

    job: Job
    outcome: Outcome | None = None
