"""Which classes a model takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMED = 50  # classes, at most, that are named along the picture's sides
NUMBERED = 15  # classes, at most, whose counts are written into its cells


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts (classes, classes) int64 of images of true class (row) that are taken for a class (column).

    >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
    tensor([[1, 1],
            [0, 1]])
    """
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def per_class(matrix: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Name, number of images, accuracy and the class most often mistaken for, of every class that has images."""
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


def draw(matrix: Tensor, names: Sequence[str], path: Path) -> None:
    """The matrix as a picture, each row in parts of its class's images; the format follows the name's ending.

    Raises:
        OSError, ValueError: the file cannot be written, or no such format.
    """
    from matplotlib.figure import Figure

    classes = len(names)
    parts = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    side = min(12.0, 3.5 + 0.3 * min(classes, NAMED))  # inches
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot(xlabel="taken for", ylabel="true class")
    image = axes.imshow(parts.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, label="part of the class", shrink=0.8)
    if classes <= NAMED:
        axes.set_xticks(range(classes), names, rotation=90)
        axes.set_yticks(range(classes), names)
    if classes <= NUMBERED:
        for row in range(classes):
            for column in range(classes):
                if count := int(matrix[row, column]):
                    colour = "white" if parts[row, column] > 0.5 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    figure.savefig(path)
