"""The confusion matrix as a file in a run folder, and as a plot. Does not import torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("true", "taken_for", "images")
NAMED = 50  # most classes whose names are written along the axes
NUMBERED = 15  # most classes whose counts are written into the cells


@dataclass(frozen=True)
class ConfusionTable:
    """Counts (classes, classes) int64 of images, by true class (row) and predicted class (column)."""

    names: tuple[str, ...]
    counts: NDArray[np.int64]

    @classmethod
    def of_seen(cls, names: Sequence[str], counts: NDArray[np.int64]) -> ConfusionTable:
        """Without classes that have no images and are never predicted, such as most of a head with 1,000 classes."""
        seen = np.flatnonzero(counts.any(0) | counts.any(1)).tolist()
        return cls(tuple(names[index] for index in seen), counts[np.ix_(seen, seen)])

    def to_csv(self) -> str:
        """A line for every pair of classes that occurs, and for every class with itself, in class order.

        >>> print(ConfusionTable(("cat", "dog"), np.array([[3, 1], [0, 0]])).to_csv(), end="")
        true,taken_for,images
        cat,cat,3
        cat,dog,1
        dog,dog,0
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row, name in enumerate(self.names):
            for column, other in enumerate(self.names):
                if row == column or self.counts[row, column]:
                    writer.writerow((name, other, int(self.counts[row, column])))
        return text.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> ConfusionTable:
        """Read what `to_csv` wrote.

        Raises:
            ValueError, KeyError: it is something else.
        """
        lines = [(line["true"], line["taken_for"], int(line["images"])) for line in csv.DictReader(io.StringIO(text))]
        names = tuple(dict.fromkeys(name for name, _, _ in lines))
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        for name, other, images in lines:
            counts[names.index(name), names.index(other)] = images
        return cls(names, counts)

    def paint(self, figure: Figure) -> None:
        """Draw the matrix on an empty figure, each row as shares of the images of its class."""
        classes = len(self.names)
        parts = self.counts / self.counts.sum(1, keepdims=True).clip(min=1)
        side = min(12.0, 3.5 + 0.3 * min(classes, NAMED))  # inches
        figure.set_size_inches(side + 1, side)
        figure.set_layout_engine("compressed")  # the constrained engine lets names stick out next to square axes
        axes = figure.add_subplot(xlabel="taken for", ylabel="true class")
        axes.grid(visible=False)
        image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        figure.colorbar(image, label="part of the class", shrink=0.8)
        if classes <= NAMED:
            axes.set_xticks(range(classes), self.names, rotation=90, parse_math=False)
            axes.set_yticks(range(classes), self.names, parse_math=False)
        if classes <= NUMBERED:
            for row, column in zip(*np.nonzero(self.counts), strict=True):
                colour = "white" if parts[row, column] > 0.5 else "black"
                number = str(self.counts[row, column])
                axes.text(column, row, number, ha="center", va="center", fontsize=8, color=colour)
