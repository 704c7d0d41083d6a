"""Which classes a model confuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts (classes, classes) int64 of images, by true class (row) and predicted class (column).

    >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
    tensor([[1, 1],
            [0, 1]])
    """
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def per_class(matrix: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """For every class that has images: its name, number of images, accuracy, and most frequent wrong prediction."""
    found = []
    for index, row in enumerate(matrix):
        images = int(row.sum())
        if images:
            wrong = row.clone()
            wrong[index] = 0
            mistaken = names[int(wrong.argmax())] if wrong.any() else None
            accuracy = row[index].item() / images
            found.append({"class": names[index], "n": images, "accuracy": accuracy, "taken_for": mistaken})
    return found
