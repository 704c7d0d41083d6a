"""How the command was launched, and who speaks: `torchrun` and `accelerate launch` start one command several times."""

from __future__ import annotations

import os


def launched() -> int:
    """The number of processes of this command, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this is the process that speaks for all: results and errors that all have are said once."""
    return os.environ.get("RANK", "0") == "0"
