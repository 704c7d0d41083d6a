"""What a training costs and how it goes: loss, throughput, waiting for data, memory."""

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
    """Over the steps since the last look, all processes together.

    Attributes:
        loss: the mean.
        bad_step: the first step whose loss was NaN or Inf, None if there was none.
        images_per_second: of training.
        data_wait: part of the time that this process waited for batches, 0 … 1.
        memory: bytes at the peak so far, of this process.
    """

    loss: float
    bad_step: int | None
    images_per_second: float
    data_wait: float
    memory: int


class Meter:
    """Adds up on the device what happens between two looks: one synchronisation a look, none a step."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.images, self.seconds, self.waited = 0, 0.0, 0.0  # of all looks together
        self.restart()

    def restart(self) -> None:
        """Leave out the time since the last look: it was not spent training."""
        self._seen = torch.tensor([0.0, torch.inf], device=self.processes.device)  # sum of losses, first bad step
        self._passes, self._images, self._waited = 0, 0, 0.0
        self._started = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    def add(self, loss: Tensor, images: int, step: int) -> None:
        """A pass of `step` over `images` images."""
        loss = loss.detach().float()
        bad = torch.where(torch.isfinite(loss), torch.inf, step)
        self._seen = torch.stack([self._seen[0] + loss, torch.minimum(self._seen[1], bad)])
        self._passes += 1
        self._images += images

    def look(self) -> Figures:
        """The figures since the last look."""
        seen = self.processes.everyones(self._seen).cpu()
        seconds = max(time.monotonic() - self._started, 1e-9)
        images, waited = self._images * self.processes.count, self._waited
        self.images, self.seconds, self.waited = self.images + images, self.seconds + seconds, self.waited + waited
        bad = seen[:, 1].min().item()
        figures = Figures(
            loss=seen[:, 0].mean().item() / max(1, self._passes),
            bad_step=None if bad == torch.inf else int(bad),
            images_per_second=images / seconds,
            data_wait=waited / seconds,
            memory=peak_memory(self.processes.device),
        )
        self.restart()
        return figures

    def totals(self) -> dict[str, float | int | None]:
        """Of the whole training in this process: images_per_second, data_wait, peak_memory in bytes."""
        trained = self.seconds > 0
        return {
            "images_per_second": round(self.images / self.seconds, 1) if trained else None,
            "data_wait": round(self.waited / self.seconds, 4) if trained else None,
            "peak_memory": peak_memory(self.processes.device),
        }


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: on the GPU where the run is on one, else by this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
