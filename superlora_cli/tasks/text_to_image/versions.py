"""Versions of a training image, one of which is drawn each time: mirrored or not, its caption in one of some orders."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from superlora_cli.data.stream import generator
from superlora_cli.tasks.text_to_image.encoding import Seen

ORDERS = 8  # of the parts of a caption: every one is encoded, and stored


def orders(caption: str, kept: int) -> list[str]:
    """A caption with its parts between commas in at most eight orders, the first its own; the first `kept` stay.

    >>> orders("sks dog, lying", 1)
    ['sks dog, lying']
    >>> orders("sks, dog, lying", 1)
    ['sks, dog, lying', 'sks, lying, dog']
    """
    parts = [part.strip() for part in caption.split(",")]
    start, rest = parts[:kept], parts[kept:]
    found = {caption: None}
    for number in range(4 * ORDERS if len(rest) > 1 else 0):
        order = torch.randperm(len(rest), generator=generator(number, 0)).tolist()
        found[", ".join([*start, *(rest[place] for place in order)])] = None
    return list(found)[:ORDERS]


def versions(sample: Seen, *, flip: bool, shuffle: int | None) -> list[Seen]:
    """All versions of an image, the first as it is."""
    captions = [sample.caption] if shuffle is None else orders(sample.caption, shuffle)
    plain = [sample._replace(caption=caption) for caption in captions]
    mirrored = [one._replace(latents=f"{one.latents} mirrored", flipped=True) for one in plain] if flip else []
    return plain + mirrored


def drawn_versions(known: Sequence[Sequence[Seen]], *, seed: int, place: int) -> list[Seen]:
    """A version of each image of a batch, drawn anew for each place in the stream."""
    random = generator(seed, place)
    return [own[int(torch.randint(len(own), (), generator=random))] for own in known]
