"""Batches of sequences, as a pure function of seed and step, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from superlora_cli.data.stream import Share, generator, of_epochs, steps_of_epoch
from superlora_cli.tasks.language.encoding import Encoded

Packed = np.ndarray  # numbers of the texts in a sequence
WINDOW = 50  # batches among whose texts those of similar lengths are put together
TENSORS = ("ids", "positions", "at", "wanted")  # of a batch
MULTIPLE = 8  # sequences are padded to a multiple of this, as matrix units like it


class Batch(NamedTuple):
    """Sequences, and what is to be predicted.

    Attributes:
        ids, positions: (B, L) int64; positions start anew with every text.
        at: (n,) where a learned token follows, in the flattened sequences.
        wanted: (n,) these tokens.
        weight: what the sum of their losses is multiplied by to become the step's mean.
        tokens: without padding.
    """

    ids: Tensor
    positions: Tensor
    at: Tensor
    wanted: Tensor
    weight: float
    tokens: int

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in TENSORS}
        return self._replace(**moved)

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sums (B,) over the learned tokens (n,) of each sequence."""
        count, length = self.ids.shape
        return torch.zeros(count, device=values.device).index_add_(0, self.at // length, values)


def packed(lengths: np.ndarray, order: np.ndarray, room: int) -> list[Packed]:
    """Texts in this order, as many to a sequence as fit into `room`.

    >>> [own.tolist() for own in packed(np.array([3, 4, 2, 6]), np.array([2, 0, 1, 3]), 6)]
    [[2, 0], [1], [3]]
    """
    ends = np.cumsum(lengths[order])
    found, start, used = [], 0, 0
    while start < len(order):
        stop = int(np.searchsorted(ends, used + room, side="right"))
        found.append(order[start:stop])
        start, used = stop, int(ends[stop - 1])
    return found


def in_batches(lengths: Sequence[int] | np.ndarray, most: int, tokens: int) -> list[range]:
    """Numbers of sequences, in this order, in batches of at most `most` sequences and `tokens` tokens with padding.

    A sequence that is longer has a batch to itself.

    >>> in_batches([5, 5, 2, 2, 2, 9], 3, 8)
    [range(0, 1), range(1, 2), range(2, 5), range(5, 6)]
    """
    found, start, longest = [], 0, 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if index - start == most or (index > start and longest * (index - start + 1) > tokens):
            found.append(range(start, index))
            start, longest = index, length
    return [*found, range(start, len(lengths))]


def epoch(encoded: Encoded, batch_size: int, seed: int, number: int, room: int | None) -> list[list[Packed]]:
    """All batches of an epoch, in random order; packed into sequences of `room` tokens, else of similar lengths."""
    random = generator(seed, number)
    order = torch.randperm(len(encoded), generator=random).numpy()
    if room is not None:
        rows = packed(encoded.lengths, order, room)
        return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    parts = np.split(order, range(WINDOW * batch_size, len(order), WINDOW * batch_size))
    order = np.concatenate([part[np.argsort(encoded.lengths[part], kind="stable")] for part in parts])
    batches = [list(order[start : start + batch_size, None]) for start in range(0, len(order), batch_size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=random).tolist()]


def steps_of_texts(encoded: Encoded, batch_size: int, share: Share, room: int | None) -> int:
    """Steps per epoch; batches left over at its end are dropped."""
    return steps_of_epoch(len(epoch(encoded, batch_size, 0, 0, room)), share)


def stream(
    encoded: Encoded, batch_size: int, *, seed: int, start: int, stop: int, share: Share, room: int | None, pad: int
) -> Iterator[Batch]:
    """This process's batches of steps `start` ... `stop` − 1; each weighs as much as it has tokens to learn."""
    numbers = partial(epoch, encoded, batch_size, seed, room=room)
    learned = np.add.reduceat(encoded.learned, encoded.starts[:-1])  # tokens of each text
    for batches, own in of_epochs(numbers, steps_of_texts(encoded, batch_size, share, room), share, start, stop):
        total = sum(int(learned[np.concatenate(rows)].sum()) for rows in batches)
        for rows in own:
            yield collated(encoded, rows, pad=pad, weight=share.parts / total)


def collated(encoded: Encoded, rows: Sequence[Packed], *, pad: int, weight: float = 1.0) -> Batch:
    """Sequences of texts as a batch, padded to the longest."""
    sizes = [int(encoded.lengths[row].sum()) for row in rows]
    longest = -(-max(sizes) // MULTIPLE) * MULTIPLE
    ids = np.full((len(rows), longest), pad, np.int64)
    positions = np.zeros((len(rows), longest), np.int64)
    marks = np.zeros((len(rows), longest), bool)
    for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        starts, stops = encoded.starts[row], encoded.starts[row + 1]
        spans = [slice(*span) for span in zip(starts.tolist(), stops.tolist(), strict=True)]
        ids[index, :size] = np.concatenate([encoded.tokens[span] for span in spans])
        marks[index, :size] = np.concatenate([encoded.learned[span] for span in spans])
        lengths = stops - starts
        positions[index, :size] = np.arange(size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        positions[index, size:] = np.arange(longest - size)  # padding is a text of its own
    (at,) = np.nonzero(marks.ravel())
    wanted = ids.ravel()[at]
    tensors = dict(zip(TENSORS, map(torch.from_numpy, (ids, positions, at - 1, wanted)), strict=True))
    return Batch(**tensors, weight=weight, tokens=sum(sizes))
