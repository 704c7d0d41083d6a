"""Commands as pages show them."""

from __future__ import annotations

import shlex

from tests.conftest import Result, run_cli


def carry_out(line: str) -> Result:
    """A line `superlora …`, in this process and the current folder; it must succeed. Training is cut short."""
    words = shlex.split(line, comments=True)[1:]
    short = ("train.steps=20", "train.checkpoint_every=20", "eval.every=10") if words[0] == "train" else ()
    result = run_cli(*words, *short)
    assert result.code == 0, f"{line}\n{result.err}"
    return result
