"""Batches as a pure function of the seed and the step, so that a resumed run sees what an uninterrupted one does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from superlora_cli.data.splits import Sample
from superlora_cli.errors import SuperLoraError

Key = tuple[int, int]  # (epoch, index)
Batch = tuple[Tensor, Tensor]  # images (B, 3, S, S) float32, labels (B,) int64


class StepSampler(Sampler[list[Key]]):
    """Batches number `start` ... `stop` − 1 of an endless stream of shuffled epochs, the last part batch dropped.

    Args:
        length: number of images.
        batch_size: images a batch; a smaller data set is one batch.
        seed: of the shuffling; epoch e is permuted by (seed, e) alone.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int, start: int, stop: int) -> None:
        self.length, self.batch_size = length, min(batch_size, length)
        self.seed, self.start, self.stop = seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = self.length // self.batch_size
        order: list[int] = []
        current = -1
        for batch in range(self.start, self.stop):
            epoch, place = divmod(batch, per_epoch)
            if epoch != current:
                current = epoch
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.length, generator=generator).tolist()
            first = place * self.batch_size
            yield [(epoch, index) for index in order[first : first + self.batch_size]]


class Keyed(Dataset[Sample]):
    """Samples by (epoch, index): whatever randomness a transform draws depends on (seed, epoch, index) alone,
    not on the worker that happens to run it."""

    def __init__(self, images: Dataset[Sample], seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        mixed = hash((self.seed, epoch, index)) % 2**63
        outside = random.getstate()
        with torch.random.fork_rng(devices=[]):
            random.seed(mixed)
            torch.manual_seed(mixed)
            sample = self.images[index]
        random.setstate(outside)
        return sample


def training_batches(
    images: Any, batch_size: int, *, seed: int, start: int, stop: int, workers: int, pin: bool, keyed: bool
) -> Iterator[Batch]:
    """Batches number `start` ... `stop` − 1: ((B, 3, S, S) float32, (B,) int64).

    `keyed` says that reading a sample is random (augmentation) and must be keyed by epoch and index.
    """
    sampler = StepSampler(len(images), batch_size, seed=seed, start=start, stop=stop)
    dataset: Dataset[Sample] = Keyed(images, seed) if keyed else _ByIndex(images)
    return _read(dataset, batch_sampler=sampler, num_workers=workers, pin_memory=pin)


class _ByIndex(Dataset[Sample]):
    """Samples by (epoch, index) where reading one is not random."""

    def __init__(self, images: Dataset[Sample]) -> None:
        self.images = images

    def __getitem__(self, key: Key) -> Sample:
        return self.images[key[1]]


def evaluation_batches(images: Any, batch_size: int, *, workers: int, pin: bool) -> Iterator[Batch]:
    """All images once, in order."""
    return _read(images, batch_size=batch_size, num_workers=workers, pin_memory=pin)


def _read(images: Any, **how: Any) -> Iterator[Batch]:
    """torch's loader, with errors of worker processes as they were raised, without the traceback around them."""
    # A loader draws a number whenever it is iterated. Not from the model's generator: a resumed run iterates once more.
    loader: DataLoader[Batch] = DataLoader(images, generator=torch.Generator().manual_seed(0), **how)
    try:
        yield from loader
    except SuperLoraError as error:
        *traceback, last = error.message.strip().splitlines()
        raise type(error)(last.partition(": ")[2]) if traceback else error from None
