"""How similar the updates of many runs are to those of one: `geometry` over all weights, runs and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from superlora_cli.reporting.geometry import Similarity
from superlora_cli.reporting.metrics import Spread

MEASURES = {"left": "d_L", "right": "d_R", "distance": "d_E"}  # attribute of a Similarity → its name in the paper


@dataclass(frozen=True)
class Nearness:
    """The similarities of runs to one run.

    Attributes:
        against: the run that all others are compared with.
        kinds: the names of its weights, by the target pattern in the recipe (`q`, `v`).
        shape: (out, in) of the weights, if they all have the same shape.
        found: by row number, for each of its runs, the similarity of every weight by name.
    """

    against: str
    kinds: Mapping[str, tuple[str, ...]]
    shape: tuple[int, int] | None
    found: Mapping[int, Sequence[Mapping[str, Similarity]]]

    def points(self, row: int, names: Sequence[str], x: str, y: str) -> list[tuple[float, float]]:
        """Two of the measures, for the weights of these names in all runs of a row, where both are defined."""
        pairs = [
            (getattr(run[name], x), getattr(run[name], y))
            for run in self.found.get(row, ())
            for name in names
            if name in run
        ]
        return [(one, other) for one, other in pairs if one is not None and other is not None]

    def mean(self, row: int, measure: str) -> Spread | None:
        """The mean over the weights of a run, and its spread over the runs of the row."""
        means = []
        for run in self.found.get(row, ()):
            values = [value for one in run.values() if (value := getattr(one, measure)) is not None]
            means += [sum(values) / len(values)] if values else []
        return Spread.of(means)
