"""Common parts of the benchmarks: interleaved runs, round-by-round ratios with their spread, memory.

A ratio is taken within a round, between runs a few seconds apart, and its median over the rounds is reported: so a
machine that is busy for a while, or clocks down, slows both sides alike.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile

CHUNK = 10  # steps of a training loop that are timed together: one of them logs
Run = Callable[[], object]
Times = dict[str, list[float]]  # name → seconds, one entry a round


@dataclass(frozen=True)
class Spread:
    """The median of a few measurements and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """
        >>> Spread.of([4.0, 1.0, 2.0, 3.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def ratio(times: Times, name: str, base: str) -> Spread:
    """How many times as long `name` took as `base`, round by round."""
    return Spread.of([one / other for one, other in zip(times[name], times[base], strict=True)])


@dataclass(frozen=True)
class Criterion:
    """A goal: the most that a ratio should be. It is met within its spread where only the lower quartile is."""

    text: str
    goal: float
    found: Spread | None

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        if self.found.median <= self.goal:
            return "ok"
        return "ok within the spread" if self.found.low <= self.goal else "not met"

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.text}: {self.verdict}"
        return f"{self.text}: {self.found.median:.3f} ({self.found.low:.3f}–{self.found.high:.3f}), {self.verdict}"

    def figures(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self) | {"verdict": self.verdict}


def wait_for(device: torch.device) -> None:
    """Wait for the device to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(runs: Mapping[str, Run], rounds: int, device: torch.device, *, calls: int = 1) -> Times:
    """Seconds of one call of every run, in each of `rounds` rounds; the order is random in every round.

    `calls` calls are timed together and divided, for what is too short to be timed alone. One round goes before,
    uncounted. Python's garbage is collected between the rounds, never inside.
    """
    times: Times = {name: [] for name in runs}
    order, shuffled = list(runs), random.Random(0)
    for count in range(rounds + 1):
        shuffled.shuffle(order)
        gc.collect()
        gc.disable()
        for name in order:
            run = runs[name]
            wait_for(device)
            start = time.perf_counter()
            for _ in range(calls):
                run()
            wait_for(device)
            if count:
                times[name].append((time.perf_counter() - start) / calls)
        gc.enable()
    return times


def peak_bytes(run: Run, device: torch.device) -> int:
    """Bytes that tensors hold at most while `run` runs, beyond what they held before, in a separate, untimed step.

    On CUDA by the allocator's own count. On the CPU by adding up the allocations and releases that torch.profiler
    records, which is exact for tensors, temporaries inside of operators too, and leaves out what mathematical
    libraries allocate for themselves; resident memory would count what the allocator keeps back for later as well.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # it reports its start and stop on stderr otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def held_bytes() -> int:
    """Bytes in the storages of all tensors that Python knows, each storage once; a compiler's have none."""
    gc.collect()
    kinds = [(thing, type(thing)) for thing in gc.get_objects()]
    tensors = [thing for thing, kind in kinds if issubclass(kind, Tensor) and not issubclass(kind, FakeTensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def device_called(name: str) -> torch.device:
    """`auto` is CUDA if available, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def setting(device: torch.device) -> str:
    """The machine of a measurement, for its heading."""
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    return f"torch {torch.__version__}, {place}"
