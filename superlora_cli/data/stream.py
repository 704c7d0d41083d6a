"""Endless streams of epochs, as a pure function of seed and step, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

B = TypeVar("B")  # a batch


@dataclass(frozen=True)
class Share:
    """How the batches of one optimizer step are divided.

    Attributes:
        passes: forward passes per step, with one batch each.
        process, processes: index of this process, and number of processes.
    """

    passes: int = 1
    process: int = 0
    processes: int = 1

    @property
    def parts(self) -> int:
        """Batches per step, of all processes together."""
        return self.passes * self.processes


ALL = Share()


def generator(seed: int, number: int) -> torch.Generator:
    """The random numbers of one epoch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def steps_of_epoch(batches: int, share: Share) -> int:
    """Steps per epoch, of which each takes `share.parts` batches; batches left over at its end are dropped.

    >>> [steps_of_epoch(batches, Share(passes=4)) for batches in (3, 8, 11)]
    [1, 2, 2]
    """
    return max(1, batches // share.parts)


def of_epochs(
    epoch: Callable[[int], Sequence[B]], per_epoch: int, share: Share, start: int, stop: int
) -> Iterator[tuple[list[B], list[B]]]:
    """The batches of each of the steps `start` ... `stop` − 1: all of a step, and those of this process, one per pass.

    An epoch with fewer batches than a step takes is gone through again.

    Args:
        epoch: the batches of an epoch by its number, in order.
        per_epoch: steps of an epoch, the same for all.

    >>> share = Share(passes=2, process=1, processes=2)
    >>> list(of_epochs(lambda number: [f"{number}{letter}" for letter in "abcdefg"], 1, share, 0, 2))
    [(['0a', '0b', '0c', '0d'], ['0b', '0d']), (['1a', '1b', '1c', '1d'], ['1b', '1d'])]
    """
    order: Sequence[B] = ()
    current = -1
    for step in range(start, stop):
        number, place = divmod(step, per_epoch)
        if number != current:
            current, order = number, epoch(number)
        batches = [order[(place * share.parts + part) % len(order)] for part in range(share.parts)]
        yield batches, batches[share.process :: share.processes]
