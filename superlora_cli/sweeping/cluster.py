"""Jobs on a Ray cluster. Ray places them by CPUs and GPUs, and restarts them if a node is lost.

All nodes must see the sweep's folder under the same path and have superlora installed. A restarted run continues from
its newest checkpoint.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Generator
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

from superlora_cli.cache import STORE
from superlora_cli.errors import UsageError
from superlora_cli.sweeping.work import WAIT, Event, Job, Outcome

RETRIES = 5  # for a run whose node or process is lost
LOOK = 5.0  # seconds between checks of the size of the cluster
KNOCK = 10.0  # seconds to wait for a cluster's answer
PATIENCE = 120.0  # seconds that runs have to save when they are stopped


def each_on_cluster(
    jobs: deque[Job], work: str, address: str, *, limit: int | None = None
) -> Generator[Event, None, None]:
    """Execute jobs on the cluster at `address` (`auto`, `local`, `HOST:PORT`, `ray://…`).

    Jobs are taken from the left of `jobs`; more can be added at each event, the last one included.

    A job takes its number of threads as CPUs and, if the cluster has GPUs and the recipe wants one, a GPU. As many jobs
    are submitted at a time as the cluster has room for, or `limit`.

    Raises:
        UsageError: Ray is not installed, or there is no cluster.
    """
    with redirect_stdout(sys.stderr):  # Ray reports lost nodes on stdout, where --json promises a single object
        yield from _each(_connected(address), jobs, work, limit)


def _each(ray: Any, jobs: deque[Job], work: str, limit: int | None) -> Generator[Event, None, None]:
    carry_out = ray.remote(max_retries=RETRIES)(_carry_out)
    place = os.getcwd()
    running: dict[Any, Job] = {}
    try:
        while jobs or running:
            resources = ray.cluster_resources()
            has_gpus = resources.get("GPU", 0) > 0
            while jobs and len(running) < (limit or _room(jobs[0], int(_wants_gpu(jobs[0]) and has_gpus), resources)):
                job = replace(jobs.popleft(), wait=WAIT)
                asked = carry_out.options(num_cpus=job.threads, num_gpus=int(_wants_gpu(job) and has_gpus), name=job.id)
                running[asked.remote(job, work, place)] = job
                yield Event(job)
            for reference in ray.wait(list(running), timeout=LOOK)[0]:
                yield Event(running.pop(reference), _outcome(ray, reference))
    finally:
        for reference in running:
            ray.cancel(reference)  # interrupts it, so that training saves
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)
        ray.shutdown()


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("ray is not installed", where="--ray", hint="pip install 'superlora-cli[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except (OSError, ValueError, RuntimeError) as error:
        cause = " ".join(str(error).split())
        raise UsageError(f"no Ray cluster: {cause}", where=f"--ray {address}", hint="`ray start --head`") from None
    return ray


def _reach(address: str) -> None:
    """Check that HOST:PORT answers: Ray itself would retry for minutes.

    Raises:
        OSError: it does not.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


def _carry_out(job: Job, work: str, place: str) -> Outcome:
    """Execute a job on a node, in the folder where the sweep was started, so that paths mean the same."""
    if os.path.isdir(place):
        os.chdir(place)
    STORE.keeps = True
    module, _, name = work.partition(":")
    outcome: Outcome = getattr(importlib.import_module(module), name)(job)
    return outcome


def _outcome(ray: Any, reference: Any) -> Outcome:
    try:
        found: Outcome = ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        return Outcome("interrupted", "cancelled")
    except ray.exceptions.RayError as error:
        return Outcome("failed", " ".join(str(error).split())[:300])
    return found


def _wants_gpu(job: Job) -> bool:
    return job.recipe["train"].get("device", "auto") in ("auto", "cuda")


def _room(job: Job, gpus: int, resources: dict[str, float]) -> int:
    """How many such jobs the whole cluster has room for; at least one, for clusters that grow on demand."""
    return max(1, int(resources.get("GPU", 0) if gpus else resources.get("CPU", 0) // job.threads))
