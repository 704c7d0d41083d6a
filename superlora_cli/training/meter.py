"""Measures training: loss, throughput, time waiting for data, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from superlora_cli.training.processes import Processes


@dataclass(frozen=True)
class Figures:
    """Figures over the steps since the last look, of all processes together.

    Attributes:
        loss: the mean loss.
        bad_step: the first step whose loss was NaN or Inf; None if there was none.
        throughput: of training, in `unit` per second.
        data_wait: share of the time that this process waited for batches, 0 … 1.
        memory: peak memory of this process so far, in bytes.
    """

    loss: float
    bad_step: int | None
    throughput: float
    data_wait: float
    memory: int
    unit: str


class Meter:
    """Accumulates figures on the device between two looks: one synchronisation per look, none per step.

    Args:
        unit: what batches are measured in.
    """

    def __init__(self, processes: Processes, unit: str) -> None:
        self.processes, self.unit = processes, unit
        self.amount, self.seconds, self.waited = 0, 0.0, 0.0  # over all looks
        self.steps: set[int] = set()
        self.restart()

    def restart(self) -> None:
        """Discard the time since the last look, which was not spent training."""
        self._seen = torch.tensor([0.0, torch.inf], device=self.processes.device)  # sum of losses, first bad step
        self._passes, self._amount, self._waited = 0, 0, 0.0
        self._started = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time of waiting for a batch inside."""
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    def add(self, loss: Tensor, amount: int, step: int) -> None:
        """Add a forward and backward pass of `step` over a batch of some size, in `unit`."""
        loss = loss.detach().float()
        bad = torch.where(torch.isfinite(loss), torch.inf, step)
        self._seen = torch.stack([self._seen[0] + loss, torch.minimum(self._seen[1], bad)])
        self._passes += 1
        self._amount += amount
        self.steps.add(step)

    def look(self) -> Figures:
        """The figures since the last look."""
        seen = self.processes.everyones(self._seen).cpu()
        seconds = max(time.monotonic() - self._started, 1e-9)
        amount, waited = self._amount * self.processes.count, self._waited
        self.amount, self.seconds, self.waited = self.amount + amount, self.seconds + seconds, self.waited + waited
        bad = seen[:, 1].min().item()
        figures = Figures(
            loss=seen[:, 0].mean().item() / max(1, self._passes),
            bad_step=None if bad == torch.inf else int(bad),
            throughput=amount / seconds,
            data_wait=waited / seconds,
            memory=peak_memory(self.processes.device),
            unit=self.unit,
        )
        self.restart()
        return figures

    def totals(self) -> dict[str, float | int | None]:
        """Figures of the whole training in this process: images_per_second (or another unit), seconds_per_step,
        data_wait, peak_memory in bytes."""
        trained = self.seconds > 0
        return {
            f"{self.unit}_per_second": round(self.amount / self.seconds, 1) if trained else None,
            "seconds_per_step": round(self.seconds / len(self.steps), 6) if trained else None,
            "data_wait": round(self.waited / self.seconds, 4) if trained else None,
            "peak_memory": peak_memory(self.processes.device),
        }


def peak_memory(device: torch.device) -> int:
    """Peak memory so far in bytes: on the GPU if the run uses one, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
