"""A worker's work that tells what it reads: a line in reads.txt each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from superlora_cli.data import folder
from superlora_cli.models import loading
from superlora_cli.sweeping.job import carry_out as as_it_is
from superlora_cli.sweeping.work import Job, Outcome


def told(what: str, read: Callable[..., Any]) -> Callable[..., Any]:
    """`read`, which says so."""

    def telling(*args: Any) -> Any:
        with Path("reads.txt").open("a") as file:
            file.write(what + "\n")
        return read(*args)

    return telling


def carry_out(job: Job) -> Outcome:
    """As `sweeping.job.carry_out`."""
    return as_it_is(job)


if Path("sweep.yaml").is_file():  # in a worker, not where tests are collected
    loading.open_weights = told("base", loading.open_weights)
    folder.scan = told("images", folder.scan)
