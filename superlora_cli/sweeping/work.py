"""Jobs for workers, and their outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

WORK = "superlora_cli.sweeping.job:carry_out"  # Job → Outcome; by name, because importing it takes seconds
WAIT = 60.0  # seconds for which a run waits for its predecessor, whose process was lost, to release the folder


@dataclass(frozen=True)
class Job:
    """One run to do.

    Attributes:
        id: the run's id.
        folder: the run folder, an absolute path.
        recipe: as plain data.
        measure: the sweep's `measure` section, with its seed; None to measure nothing.
        threads: number of CPU threads.
        until: pause after this step; None: train to the end.
        wait: seconds to wait for another process that uses the folder.
    """

    id: str
    folder: str
    recipe: Mapping[str, Any]
    measure: Mapping[str, Any] | None
    threads: int
    until: int | None = None
    wait: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `paused` at its step `until`, `busy` if another process does it.

    `error` is one line, None for a completed or paused run.
    """

    status: Literal["completed", "paused", "failed", "interrupted", "busy"]
    error: str | None = None


@dataclass(frozen=True)
class Event:
    """A job has begun (no outcome) or ended."""

    job: Job
    outcome: Outcome | None = None
