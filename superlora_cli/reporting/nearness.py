"""How near the updates of many runs are to those of one: `geometry` over all weights, runs and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from superlora_cli.reporting.geometry import Similarity
from superlora_cli.reporting.metrics import Spread

MEASURES = {"left": "d_L", "right": "d_R", "distance": "d_E"}  # of a Similarity, as the paper calls them


@dataclass(frozen=True)
class Nearness:
    """Similarities to one run.

    Attributes:
        against: the run that all are compared with.
        kinds: the names of its weights by the recipe's pattern of targets (`q`, `v`).
        shape: (out, in) of the weights, if all are equal.
        found: of every row (by number) and run the similarity of each weight by name.
    """

    against: str
    kinds: Mapping[str, tuple[str, ...]]
    shape: tuple[int, int] | None
    found: Mapping[int, Sequence[Mapping[str, Similarity]]]

    def points(self, row: int, names: Sequence[str], x: str, y: str) -> list[tuple[float, float]]:
        """Two of the measures of all runs' weights with these names, where both are defined."""
        pairs = [
            (getattr(run[name], x), getattr(run[name], y))
            for run in self.found.get(row, ())
            for name in names
            if name in run
        ]
        return [(one, other) for one, other in pairs if one is not None and other is not None]

    def mean(self, row: int, measure: str) -> Spread | None:
        """The mean over a run's weights, over the row's runs."""
        means = []
        for run in self.found.get(row, ()):
            values = [value for one in run.values() if (value := getattr(one, measure)) is not None]
            means += [sum(values) / len(values)] if values else []
        return Spread.of(means)
