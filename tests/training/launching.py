"""Several processes of the command on this machine, as `torchrun` starts them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import Result, environment

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
PATIENCE = 300  # seconds, on a machine that has other things to do


def start(*words: str | Path, module: str = "superlora_cli", two: bool = True, **how: Any) -> subprocess.Popen[str]:
    """`superlora WORDS...` (or another module) in two processes, or in one, in the current folder."""
    command = [*(LAUNCH if two else (sys.executable, "-m")), module, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background would hand down SIG_IGN
    return subprocess.Popen(command, env=environment(), **{**pipes, **how})


def ended(process: subprocess.Popen[str]) -> Result:
    """What it left; it and its children are killed where they do not end."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        for one in [*children, process]:
            one.kill()
        out, err = process.communicate()
        raise AssertionError(f"did not end within {PATIENCE} s:\n{out}\n{err}") from None
    return Result(process.returncode, out, err)


def together(*words: str | Path) -> Result:
    """`superlora WORDS...` in two processes, to its end."""
    return ended(start(*words))


def spoken(result: Result) -> list[str]:
    """The lines that superlora itself said of an error."""
    return [line for line in result.err.splitlines() if "superlora: " in line]


def wait_for(there: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until `there` is true, or the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while not there() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert there(), "it never came to that"
