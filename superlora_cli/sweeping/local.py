"""Jobs in parallel processes on this machine."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from superlora_cli.cache import STORE
from superlora_cli.sweeping.work import Event, Job, Outcome

PATIENCE = 120  # seconds that a worker has to save when it is stopped


def each(
    jobs: deque[Job], work: str, *, workers: int, devices: Sequence[str], log: Path
) -> Generator[Event, None, None]:
    """Execute jobs, `workers` at a time, in processes that are reused from job to job.

    Jobs are taken from the left of `jobs`; more can be added at each event, the last one included.

    If a worker dies, only its own job fails. Closing the iterator, or an interrupt, stops the workers as a signal stops
    training: their progress is saved.

    Args:
        work: `module:function` from Job to Outcome.
        devices: values for CUDA_VISIBLE_DEVICES, which the workers take in turn; () does not set it.
        log: the file for the workers' stdout and stderr.
    """
    team = [Worker(work, devices[i % len(devices)] if devices else None, log) for i in range(workers)]
    try:
        while jobs or any(worker.job for worker in team):
            for worker in team:
                if worker.job is None and jobs:
                    worker.begin(jobs.popleft())
                    assert worker.job is not None
                    yield Event(worker.job)
            busy = {way: worker for worker in team if worker.job for way in (worker.pipe, worker.process.sentinel)}
            for worker in {id(busy[way]): busy[way] for way in connection.wait(list(busy))}.values():
                job, worker.job = worker.job, None
                assert job is not None
                yield Event(job, worker.outcome())
    finally:
        _stop(team)


class Worker:
    """A process that executes one job after the other; started with its first job, and again if it died."""

    def __init__(self, work: str, device: str | None, log: Path) -> None:
        self.how = (work, device, str(log))
        self.job: Job | None = None
        self.process: Any = None
        self.pipe: Connection

    def begin(self, job: Job) -> None:
        """Give it a job."""
        if self.process is None or not self.process.is_alive():
            self._start()
        self.job = job
        with contextlib.suppress(OSError):  # it died, which `outcome` reports
            self.pipe.send(job)

    def _start(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, *self.how))
        # Ctrl-C reaches the whole process group; workers ignore it, and are stopped by this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        resource_tracker.ensure_running()  # which unblocks signals, so not later
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def outcome(self) -> Outcome:
        """The outcome of the job that ended, or of the death of the worker."""
        with contextlib.suppress(EOFError, OSError):
            if self.pipe.poll():
                found: Outcome = self.pipe.recv()
                return found
        self.process.join()
        code = self.process.exitcode
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome("failed", f"its process ended by {cause}; workers.log may say why")


def _stop(team: Sequence[Worker]) -> None:
    """Stop all workers; those that train save first, unless this process is interrupted again."""
    running = [worker.process for worker in team if worker.process is not None]
    try:
        for worker in team:
            if worker.process is not None:
                worker.pipe.close()  # no more jobs
                if worker.job is not None:
                    worker.process.terminate()
        for process in running:
            process.join(PATIENCE)
    finally:
        for process in running:
            if process.is_alive():
                process.kill()
                process.join()


def _serve(pipe: Connection, work: str, device: str | None, log: str) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    faulthandler.enable(file=sys.stderr)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        module, _, name = work.partition(":")
        carry_out = getattr(importlib.import_module(module), name)
        STORE.keeps = True
        while True:
            outcome = carry_out(pipe.recv())
            pipe.send(outcome)
            if outcome.status == "interrupted":
                return
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


def _stop_with_parent() -> None:
    """Stop when the sweep's own process has ended, for whatever reason."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
