"""The embedded target domain: the 1,797 real handwritten digits that ship with scikit-learn.

Source: UCI "Optical Recognition of Handwritten Digits", the part in `sklearn.datasets.load_digits`: 8×8
counts of inked pixels (0 to 16), light strokes on a dark background. No download; a base that was trained on printed
glyphs (`glyphs.py`) has to adapt to them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

Split = Literal["train", "validation", "test"]

SPLIT_SEED = 1797
SPLIT_SIZES: dict[str, int] = {"test": 500, "validation": 200, "train": 1097}  # in the order they are cut


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The fixed split: disjoint, complete, every class in proportion (±1).

    Each class is shuffled and spread evenly over [0, 1); cutting that interval gives stratified parts of exact size,
    independent of the version of scikit-learn.

    Args:
        labels: (1797,) classes.

    Returns:
        For each split, its sorted indices in `labels`: int64, (500,), (200,) and (1097,).
    """
    rng = np.random.RandomState(SPLIT_SEED)
    place = np.empty(len(labels))
    for digit in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == digit))
        place[members] = np.arange(len(members)) / len(members)
    line = np.lexsort((np.arange(len(labels)), labels, place))  # by place, then class, then position
    cuts = np.cumsum(list(SPLIT_SIZES.values()))[:-1]
    return {name: np.sort(part) for name, part in zip(SPLIT_SIZES, np.split(line, cuts), strict=True)}


def load_digits_split(split: Split, image_size: int = 16) -> tuple[Tensor, Tensor]:
    """One split of the handwritten digits, enlarged bilinearly, grey repeated to three channels.

    Args:
        split: train (1,097 images), validation (200) or test (500).
        image_size: S, in pixels.

    Returns:
        images: uint8, (n, 3, S, S), 0 (background) to 255 (full ink).
        labels: int64, (n,), 0 to 9.

    Raises:
        KeyError: for any other split.

    >>> images, labels = load_digits_split("test")
    >>> images.shape, images.dtype, labels.bincount().tolist()
    (torch.Size([500, 3, 16, 16]), torch.uint8, [50, 51, 49, 51, 50, 51, 50, 50, 48, 50])
    """
    bunch = load_digits()
    chosen = split_indices(bunch.target)[split]
    ink = torch.from_numpy(bunch.images[chosen]).float().unsqueeze(1) / 16  # (n, 1, 8, 8) in [0, 1]
    grey = functional.interpolate(ink, size=(image_size, image_size), mode="bilinear", align_corners=False)
    images = grey.mul(255).round().clamp(0, 255).to(torch.uint8).repeat(1, 3, 1, 1)  # (n, 3, S, S)
    return images, torch.from_numpy(bunch.target[chosen]).long()
