"""Batches of images of one size, as a pure function of seed and step, so that a resumed run sees the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch

from superlora_cli.data.stream import generator
from superlora_cli.tasks.text_to_image.encoding import Seen
from superlora_cli.tasks.text_to_image.sizes import Size


def repeated(samples: Sequence[Seen], names: Sequence[str], repeats: Mapping[str, int]) -> list[Seen]:
    """The images of an epoch: each as often as the first pattern says that its name matches, else once."""
    times = [next((count for pattern, count in repeats.items() if fnmatchcase(name, pattern)), 1) for name in names]
    return [sample for sample in samples for _ in range(times[sample.number])]


def epoch(samples: Sequence[Seen], batch_size: int, seed: int, number: int) -> list[list[Seen]]:
    """All batches of an epoch in random order, each of images of one size; the last of a size may be smaller."""
    random = generator(seed, number)
    groups: dict[tuple[int, int], list[Seen]] = {}
    for sample in samples:
        groups.setdefault(sample.size, []).append(sample)
    batches: list[list[Seen]] = []
    for size in sorted(groups):
        own = [groups[size][index] for index in torch.randperm(len(groups[size]), generator=random).tolist()]
        batches += [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=random).tolist()]


def dealt(count: int, sizes: Sequence[Size]) -> dict[Size, list[int]]:
    """The numbers 0 … count − 1 of other images, dealt to the sizes of an epoch's images in proportion to how many have
    each: every number goes to one size, and every size gets one at least.

    >>> {size: len(own) for size, own in dealt(8, [(16, 16), (16, 16), (16, 16), (8, 32)]).items()}
    {(8, 32): 2, (16, 16): 6}
    """
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    found, before = {}, 0
    for size, own in sorted(Counter(sizes).items()):
        first, stop = (end * count // len(sizes) for end in (before, before + own))
        found[size] = shuffled[first : max(stop, first + 1)]
        before += own
    return found


def drawn_beside(count: int, among: int, *, seed: int, place: int) -> list[int]:
    """Numbers of other images for a batch of `count`, drawn anew for each place in the stream; [] if there are none."""
    if not among:
        return []
    random = torch.Generator().manual_seed((seed * 1_000_003 + place) * 2 + 1)
    return torch.randint(among, (count,), generator=random).tolist()
