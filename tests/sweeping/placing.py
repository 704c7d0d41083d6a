"""A worker's work that tells which GPUs it sees, and imports nothing for it."""

from __future__ import annotations

import os

from superlora_cli.sweeping.work import Job, Outcome


def carry_out(job: Job) -> Outcome:
    """Does nothing else."""
    return Outcome("completed", os.environ.get("CUDA_VISIBLE_DEVICES"))
