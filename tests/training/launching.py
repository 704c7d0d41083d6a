"""Several processes of the command on this machine: started by `torchrun`, or forked with what it tells them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from superlora_cli.cli import app
from tests.conftest import Result, environment
from tests.forking.commands import PATIENCE, Commands, Done, Running

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "superlora_cli")


def start(*words: str | Path, module: tuple[str, ...] = ("superlora_cli",), **how: Any) -> subprocess.Popen[str]:
    """`superlora WORDS...` in a process that has imported nothing, in the current folder."""
    command = [sys.executable, "-m", *module, *map(str, words)]
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


def torchrun(*words: str | Path) -> Result:
    """`superlora WORDS...` in two processes of torchrun, to its end."""
    return ended(start(*words, module=TORCHRUN))


def pair(commands: Commands, *words: str | Path, setup: tuple[str, ...] = ()) -> list[Running]:
    """`superlora WORDS...` in two processes that find each other, by rank, in the current folder."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    how = {"cwd": Path.cwd(), "setup": (*setup, f"{__name__}:without_patience")}
    return [commands.start(*words, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, **how) for rank in "01"]


def without_patience() -> None:
    """In a command: it does not wait for a launcher, which would end it as soon as the main process has reported."""
    app.PATIENCE = 0


def together(commands: Commands, *words: str | Path, setup: tuple[str, ...] = ()) -> Result:
    """`superlora WORDS...` in two processes, to its end."""
    return both(pair(commands, *words, setup=setup))


def both(running: Sequence[Running]) -> Result:
    """The exit code that processes agree on, and all they said."""
    (code,) = {one.done.code for one in running}
    return Result(code, *("".join(getattr(one.done, name) for one in running) for name in ("out", "err")))


def spoken(result: Result | Done) -> list[str]:
    """The lines that superlora itself said of an error."""
    return [line for line in result.err.splitlines() if "superlora: " in line]


def wait_for(there: Callable[[], object], process: Running | subprocess.Popen[str]) -> None:
    """Until `there` is true, or the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while not there() and not _over(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert there(), "it never came to that"


def _over(process: Running | subprocess.Popen[str]) -> bool:
    return process.over if isinstance(process, Running) else process.poll() is not None
