"""Commands carried out in processes of their own, in hundredths of a second each: children of one `server`.

with Commands() as superlora:
    done = superlora.run("inspect", "adapter.safetensors", cwd=folder)
    running = superlora.start("train", "quickstart", cwd=folder)
    running.kill(signal.SIGKILL)
    running.done.code
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds for a command, on a machine that has other things to do
FORKED = ("tests.forking.workers:forked",)  # setup of a sweep whose workers are forked
MEMORY = 2**30  # bytes that a command may take beyond what importing took


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        code: exit code; negative: the signal that ended it.
        seconds: of processor time.
    """

    code: int
    out: str
    err: str
    seconds: float

    def json(self) -> dict[str, Any]:
        """The object of `--json`."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Running:
    """A command that was started."""

    def __init__(self, commands: Commands, pid: int, said: Path) -> None:
        self.commands, self.pid, self.said, self.began = commands, pid, said, time.monotonic()

    def kill(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send it a signal, if it is still there; to its whole group of processes if that is wanted."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        with open(f"/proc/{self.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"

    @cached_property
    def done(self) -> Done:
        """Waits for its end."""
        code, seconds = self.commands.ask({"wait": self.pid})
        out, err = (self.said.with_suffix(end) for end in (".out", ".err"))
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
        for path in (out, err):
            path.unlink(missing_ok=True)
        return Done(code, *texts, seconds)


class Commands:
    """Starts commands. Children inherit the environment of the moment it is entered."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="superlora-faults-")
        self._count = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
                       "XDG_CACHE_HOME": f"{self._folder.name}/cache", "COLUMNS": "200"}  # fmt: skip
        self._server = subprocess.Popen([sys.executable, "-m", "tests.forking.server"], cwd=ROOT, env=environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()
        self._folder.cleanup()

    def ask(self, request: dict[str, Any]) -> Any:
        """The server's answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def know(self, *modules: str) -> None:
        """From now on no child needs to import these."""
        self.ask({"import": modules})

    def start(
        self,
        *words: str | Path,
        cwd: Path,
        limit: int = PATIENCE,
        memory: int | None = None,
        setup: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> Running:
        """`superlora WORDS…` in the folder `cwd`; see `server._carry_out`."""
        self._count += 1
        said = Path(self._folder.name) / str(self._count)
        request = {"words": list(map(str, words)), "cwd": str(cwd), "out": f"{said}.out", "err": f"{said}.err",
                   "limit": limit, "memory": memory, "setup": list(setup), "env": env or {}}  # fmt: skip
        return Running(self, self.ask(request), said)

    def run(self, *words: str | Path, cwd: Path, limit: int = PATIENCE, memory: int | None = MEMORY) -> Done:
        """The same, to its end, in bounded memory."""
        return self.start(*words, cwd=cwd, limit=limit, memory=memory).done

    def right(self, *words: str | Path, cwd: Path, setup: tuple[str, ...] = ()) -> Done:
        """The same where nothing is spoiled: it must succeed."""
        done = self.start(*words, cwd=cwd, setup=setup).done
        if done.code:
            raise AssertionError(f"superlora {' '.join(map(str, words))}: exit code {done.code}\n{done.err}")
        return done
