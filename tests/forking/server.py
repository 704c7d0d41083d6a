"""A process that has imported everything and forks a child for each command: python -m tests.forking.server

It says that it is ready. Then it reads a line of JSON at a time and answers with one: for `{"words": …, "cwd": …, …}`
the child's id, for `{"wait": id}` how it ended; for `{"import": names}` it imports more. A child leads a process group
of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any

COMMANDS = ("train", "evaluate", "merge", "export", "compress", "generate", "combine", "extract", "report")
MODULES = (
    *("superlora_cli.cli.app", *(f"superlora_cli.commands.{name}" for name in COMMANDS)),
    *(
        "optuna",
        "superlora_cli.sweeping.job",
        "superlora_cli.tuning.prepare",
        "torch._dynamo",
        "diffusers.schedulers.scheduling_ddim",
        "sklearn.datasets",
        "multiprocessing.pool",
    ),
)  # what commands import on their way


def serve() -> None:
    """Until stdin ends."""
    for name in MODULES:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status, usage = os.wait4(request["wait"], 0)
            answer: Any = [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]
        elif "import" in request:
            answer = [importlib.import_module(name).__name__ for name in request["import"]]
        else:
            answer = os.fork()
            if not answer:
                _carry_out(**request)
        print(json.dumps(answer), flush=True)


def _carry_out(
    words: list[str], cwd: str, env: dict[str, str], out: str, err: str, limit: int, memory: int | None,
    setup: list[str],
) -> None:  # fmt: skip
    """Be the command, and end with its exit code.

    Args:
        env: environment variables beside those of the server.
        out, err: files for what it says.
        limit: seconds; then SIGALRM ends it.
        memory: bytes of address space that it may take beyond what importing took.
        setup: `module:function`, or with an argument `module:function:text`, to be called before.
    """
    from superlora_cli.cli.app import main

    os.setsid()
    for name, mode, stream in ((os.devnull, os.O_RDONLY, 0), (out, os.O_WRONLY, 1), (err, os.O_WRONLY, 2)):
        os.dup2(os.open(name, mode | (os.O_CREAT if stream else 0), 0o600), stream)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the server itself may have been started deaf to it
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limit)
    code: Any = 70
    try:
        os.chdir(cwd)
        os.environ.update(env)
        for place in setup:
            module, function, *arguments = place.split(":")
            getattr(importlib.import_module(module), function)(*arguments)
        if memory is not None:
            with open("/proc/self/statm") as file:
                taken = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
        sys.argv = ["superlora", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 70)


if __name__ == "__main__":
    serve()
