"""Batches of images as a pure function of seed and step, so that a resumed run sees the same."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate

from superlora_cli.data.augment import Mix, seed_by, set_aside
from superlora_cli.data.source import Pictures, Sample
from superlora_cli.data.stream import ALL, Share, generator, of_epochs, steps_of_epoch
from superlora_cli.errors import RunError, SuperLoraError, UsageError
from superlora_cli.launch import launched

MANY = 1000  # images from which on starting workers pays off
MOST_WORKERS = 8  # started unless the recipe asks for more
PR_SET_PDEATHSIG = 1  # option of Linux's prctl: the signal to receive when the parent ends
Key = tuple[int, ...]  # (epoch, index), and for an image drawn repeatedly in an epoch, how often it came before
Batch = tuple[Tensor, Tensor]  # images (B, 3, S, S) float32; labels (B,) int64, or shares of classes (B, C) float32


def fitting(length: int, batch_size: int, share: Share) -> int:
    """Images per batch: `batch_size`, or fewer if `length` images do not fill a step.

    Raises:
        UsageError: a batch would be empty.
    """
    if length < share.parts:
        message = f"{length} training images for {share.parts} batches per step"
        raise UsageError(message, where="data", hint="lower train.accumulate, or launch fewer processes")
    return min(batch_size, length // share.parts)


def steps_of_images(length: int, batch_size: int, share: Share = ALL) -> int:
    """Steps per epoch of `length` images; images left over at the end of an epoch are dropped.

    >>> steps_of_images(1000, 64), steps_of_images(1000, 64, Share(passes=2)), steps_of_images(10, 64)
    (15, 7, 1)

    Raises:
        UsageError: as `fitting`.
    """
    return steps_of_epoch(length // fitting(length, batch_size, share), share)


class StepSampler(Sampler[list[Key]]):
    """This process's batches of steps `start` ... `stop` − 1 of an endless stream of shuffled epochs.

    A step takes the next `batch_size` × passes × processes images of the epoch; images left over at its end are
    dropped.

    Args:
        length: number of images.
        batch_size: images per batch; a data set smaller than a step is one step.
        seed: of the shuffling; the order of epoch e depends on (seed, e) only.
        share: how a step's images are divided.
        classes: of every image; if given, images are drawn such that all classes are equally frequent, not shuffled.

    Raises:
        UsageError: a batch would be empty.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        share: Share = ALL,
        classes: Sequence[int] | None = None,
    ) -> None:
        self.weights = None
        if classes is not None:
            counts = Counter(classes)
            self.weights = torch.tensor([1 / counts[label] for label in classes], dtype=torch.float64)
        self.length, self.batch_size = length, fitting(length, batch_size, share)
        self.seed, self.start, self.stop, self.share = seed, start, stop, share

    def __len__(self) -> int:
        return (self.stop - self.start) * self.share.passes

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = steps_of_images(self.length, self.batch_size, self.share)
        for _, own in of_epochs(self._epoch, per_epoch, self.share, self.start, self.stop):
            yield from own

    def _epoch(self, number: int) -> list[list[Key]]:
        keys, size = list(self._keys(number)), self.batch_size
        return [keys[first : first + size] for first in range(0, len(keys), size)]

    def _keys(self, epoch: int) -> Iterator[Key]:
        random = generator(self.seed, epoch)
        if self.weights is None:
            for index in torch.randperm(self.length, generator=random).tolist():
                yield epoch, index
            return
        drawn: Counter[int] = Counter()
        for index in torch.multinomial(self.weights, self.length, replacement=True, generator=random).tolist():
            yield (epoch, index, drawn[index]) if drawn[index] else (epoch, index)
            drawn[index] += 1


class Keyed(Dataset[Sample]):
    """Samples by their keys: the randomness of a transform depends on seed and key only, not on the worker that
    happens to run it."""

    def __init__(self, images: Dataset[Sample], seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, key: Key) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[Sample]:
        """A whole batch, for torch's loader: the global generators are saved and restored only once."""
        samples = []
        with set_aside():
            for key in keys:
                seed_by(self.seed, *key)
                samples.append(self.images[key[1]])
        return samples


def training_batches(
    images: Any,
    batch_size: int,
    *,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    pin: bool,
    keyed: bool,
    share: Share = ALL,
    classes: Sequence[int] | None = None,
    mix: Mix | None = None,
) -> Generator[Batch, None, None]:
    """The batches of steps `start` ... `stop` − 1.

    Args:
        keyed: whether reading a sample is random (augmentation) and must be keyed by epoch and index.
        mix: mixes the images of a batch.

    The other arguments are those of `StepSampler` and of torch's loader.
    """
    sampler = StepSampler(len(images), batch_size, seed=seed, start=start, stop=stop, share=share, classes=classes)
    samples = Keyed(images, seed) if keyed else _ByIndex(images)
    how: dict[str, Any] = {"batch_sampler": sampler, "num_workers": workers, "pin_memory": pin}
    return _read(samples, **how) if mix is None else _read(_Mixed(samples, seed, mix), collate=_as_it_is, **how)


class _ByIndex(Dataset[Sample]):
    """Samples by their keys, if reading them is not random."""

    def __init__(self, images: Dataset[Sample]) -> None:
        self.images = images

    def __getitems__(self, keys: list[Key]) -> list[Sample]:
        return [self.images[key[1]] for key in keys]


class _Mixed(Dataset[Batch]):
    """Whole batches by their samples' keys, mixed with random numbers that depend on seed and keys only."""

    def __init__(self, samples: Keyed | _ByIndex, seed: int, mix: Mix) -> None:
        self.samples, self.seed, self.mix = samples, seed, mix

    def __getitems__(self, keys: list[Key]) -> Batch:
        images, labels = default_collate(self.samples.__getitems__(keys))
        with set_aside():
            seed_by(self.seed, *keys)
            return self.mix(images, labels)


class _Whole(Dataset[Batch | SuperLoraError]):
    """Whole batches by their samples' keys. Errors are values, because torch raises only their text again."""

    def __init__(self, samples: Any, collate: Callable[[Any], Batch]) -> None:
        self.samples, self.collate = samples, collate

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: list[Any]) -> Batch | SuperLoraError:
        read = getattr(self.samples, "__getitems__", None)
        try:
            return self.collate(read(keys) if read else [self.samples[key] for key in keys])
        except SuperLoraError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def evaluation_batches(images: Any, batch_size: int, *, workers: int, pin: bool) -> Generator[Batch, None, None]:
    """All images once, in order. If many have to be decoded, a few workers are started even if none are asked for."""
    pictures = images
    while isinstance(pictures, Subset):
        pictures = pictures.dataset
    if isinstance(pictures, Pictures) and len(images) >= MANY:
        workers = max(workers, min(MOST_WORKERS, (os.cpu_count() or 1) // launched()))
    return _read(images, batch_size=batch_size, num_workers=workers, pin_memory=pin)


def chosen_batches(images: Any, batches: Sequence[Sequence[int]], *, workers: int) -> Generator[Batch, None, None]:
    """Batches of the images with these indices, in order."""
    return _read(images, batch_sampler=batches, num_workers=workers)


def _read(images: Any, collate: Callable[[Any], Batch] = default_collate, **how: Any) -> Generator[Batch, None, None]:
    """torch's loader; errors of worker processes are raised as they were, without the traceback around them."""
    # A loader draws a number whenever it is iterated, and a resumed run iterates once more: so it gets its own
    # generator.
    generator = torch.Generator().manual_seed(0)
    begin = partial(_begin_worker, os.getpid())
    whole = _Whole(images, collate)
    loader = DataLoader(whole, generator=generator, worker_init_fn=begin, collate_fn=_as_it_is, **how)
    with _deaf_children():
        iterator: Any = iter(loader)
    try:
        for batch in iterator:
            if isinstance(batch, SuperLoraError):
                raise batch
            yield batch
    except (ConnectionError, EOFError, RuntimeError) as error:  # depending on what the worker was doing
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise RunError(
            "a loader worker ended unexpectedly",
            where="data.workers",
            hint="out of memory? Try fewer, or 0 to load in the training process; --resume continues the run",
        ) from error
    finally:
        # The traceback of an error holds the iterator and so the workers, which would delay the exit. Shutting them
        # down may itself raise if one has died.
        with suppress(RuntimeError):
            getattr(iterator, "_shutdown_workers", lambda: None)()


def _begin_worker(parent: int, _worker: int) -> None:
    """What a worker process does first."""
    sys.excepthook = _but_for_broken_connections
    _end_with(parent)


def _end_with(parent: int) -> None:
    """Make this process end when its parent does.

    torch's workers check whether their parent changed since they started, which misses a parent that was killed before
    that.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _but_for_broken_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A worker's `sys.excepthook`, which multiprocessing's thread calls that hands tensors to the training process.

    When another worker dies, the training process may be interrupted while it takes a tensor. It reports that itself.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started inside ignore SIGINT and SIGTERM from the start.

    A signal to the whole process group is handled by the training process, which still needs its workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
