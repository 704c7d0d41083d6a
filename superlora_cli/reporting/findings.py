"""What a reader wants to know from a section: how small ρ may be, and the best order and rank within a budget.

Settings are chosen on the validation split where the runs have its metrics; the values reported are of the test split.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from superlora_cli.reporting.sections import Measure, Row, Section


@dataclass(frozen=True)
class SmallestRatio:
    """Of runs that differ only in ρ: the smallest that is as good as the largest, within a tolerance."""

    measure: Measure
    row: Row
    reference: Row
    tried: int
    tolerance: float

    def words(self) -> str:
        """The finding in words."""
        measure, row, reference = self.measure, self.row, self.reference
        within = f"{measure.chosen_by} within {self.tolerance:g}" + ("" if measure.metric.part else " of its value")
        values = [measure.metric.text(measure.values[one.number].mean) for one in (row, reference)]
        reported = f"{measure.label} " if measure.validation else ""
        wanted = f"{values[1]} with {reference.params:,} parameters"
        if row is reference:
            return f"{reference.name}: no smaller ρ of {self.tried} keeps {within} ({reported}{wanted})"
        return (
            f"{reference.name}: ρ {_ratio(row):g} is the smallest of {self.tried} that keeps {within}, "
            f"{reported}{values[0]} with {row.params:,} parameters, compared with {wanted}"
        )


@dataclass(frozen=True)
class BestWithin:
    """The best row of at most `budget` parameters."""

    measure: Measure
    budget: int
    row: Row

    def words(self) -> str:
        """The finding in words, after the name of the measure."""
        config, value = self.row.config, self.measure.values[self.row.number].mean
        assert config is not None
        setting = f"M {config.order}" if config.order == 1 else f"M {config.order}, r {config.scale_rank}"
        setting = setting if config.adapts else "no factors"
        text = self.measure.metric.text(value)
        return f"within {self.budget:,} parameters {setting} ({self.row.method}, {text} with {self.row.params:,})"


def in_words(ratios: Sequence[SmallestRatio], budgets: Sequence[BestWithin]) -> list[str]:
    """A line for every smallest ρ, and one for every measure with the best row within each budget."""
    by_measure: dict[str, list[str]] = defaultdict(list)
    for one in budgets:
        measure = one.measure
        chosen = f"best by {measure.chosen_by}, {measure.label}" if measure.validation else f"best {measure.label}"
        by_measure[chosen].append(one.words())
    lines = [f"{chosen}: {'; '.join(words)}" for chosen, words in by_measure.items()]
    return [one.words() for one in ratios] + lines


def smallest_ratios(section: Section, tolerance: float) -> list[SmallestRatio]:
    """For every family of rows that differ only in ρ, and every measure that two of them have.

    Args:
        tolerance: how much worse than at the largest ρ a metric may be, as `metrics.Metric.holds` takes it.
    """
    families: dict[str, list[Row]] = defaultdict(list)
    for row in section.rows:
        if row.config is not None:
            families[_without_ratio(row)].append(row)
    found = []
    for measure in section.measures:
        for family in families.values():
            known = sorted((row for row in family if row.number in measure.values), key=_ratio)
            if len({_ratio(row) for row in known}) > 1:
                reference = known[-1]
                wanted = measure.choice(reference)
                holding = (row for row in known if measure.metric.holds(measure.choice(row), wanted, tolerance))
                found.append(SmallestRatio(measure, next(holding), reference, len(known), tolerance))
    return found


def best_within(section: Section, budgets: Sequence[int] = ()) -> list[BestWithin]:
    """The best adapter for every measure and budget; among equally good ones the smaller.

    Args:
        budgets: numbers of parameters; by default powers of ten around the sizes of the runs.
    """
    found = []
    for measure in section.measures:
        rows = measure.best(row for row in section.rows if row.config is not None)
        for budget in budgets or _decades([row.params for row in rows]):
            within = [row for row in rows if row.params <= budget]
            if within:
                found.append(BestWithin(measure, budget, within[0]))
    return found


def _decades(params: Sequence[int]) -> list[int]:
    """The powers of ten from the smallest above some run to the smallest above all of them.

    >>> _decades([46, 90, 1776]), _decades([100])
    ([100, 1000, 10000], [100])
    """
    if not params:
        return []
    first, last = (math.ceil(math.log10(max(1, edge))) for edge in (min(params), max(params)))
    return [10**power for power in range(first, last + 1)]


def _ratio(row: Row) -> float:
    assert row.config is not None
    return row.config.ratio


def _without_ratio(row: Row) -> str:
    setting = row.runs[0].setting
    return json.dumps({**setting, "adapter": {**setting["adapter"], "ratio": None}}, sort_keys=True)
