"""How many processes the command was launched as: `torchrun` and `accelerate launch` start it several times."""

from __future__ import annotations

import os


def launched() -> int:
    """The number of processes of this command; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process prints: results, and errors that all processes share, are printed once."""
    return os.environ.get("RANK", "0") == "0"
