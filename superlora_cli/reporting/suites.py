"""Means over the data sets of a suite, as papers print them: VTAB-1k's groups, their mean, and that of all sets."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from superlora_cli.data.suites import SUITES, Suite
from superlora_cli.reporting.sections import Measure, Row, Section, main_knobs

FREE = ("lr", "head_lr")  # of the optimizer: may be another for every data set


@dataclass(frozen=True)
class Means:
    """A setting on the data sets of a suite, with the learning rate that is best on each of them.

    Attributes:
        by_set: data set → the metric's mean over seeds.
        means: group → mean of its data sets, then `groups` (of the groups) and `all` (of the data sets); without those
            of which a data set is missing.
    """

    method: str
    knobs: str
    params: int
    by_set: Mapping[str, float]
    means: Mapping[str, float]


@dataclass(frozen=True)
class SuiteTable:
    """A suite on a base: its title, its columns of means, and a row per setting, the best first."""

    title: str
    metric: str
    columns: tuple[str, ...]
    rows: tuple[Means, ...]


def suite_tables(sections: Sequence[Section]) -> list[SuiteTable]:
    """A table for every suite and base of which there are runs; by the sections' first metric."""
    found: dict[tuple[str, str, str], dict[str, Section]] = defaultdict(dict)
    for section in sections:
        prefix, _, name = section.data.partition("/")
        if prefix in SUITES and name in SUITES[prefix].classes and section.measures:
            found[prefix, section.task, section.model][name] = section
    return [
        _table(SUITES[prefix], f"{SUITES[prefix].title}: {model}", by_set)
        for (prefix, _, model), by_set in found.items()
    ]


def _table(suite: Suite, title: str, by_set: Mapping[str, Section]) -> SuiteTable:
    settings: dict[str, dict[str, tuple[Measure, Row]]] = defaultdict(dict)
    for name, section in by_set.items():
        measure = section.measures[0]
        for row in measure.best(section.rows):  # the best first
            settings[_key(row)].setdefault(name, (measure, row))
    several = len(suite.groups) > 1
    columns = (*suite.groups, *(("groups",) if several else ()), "all")
    rows = [_means(suite, found) for found in settings.values()]
    measure = next(iter(by_set.values())).measures[0]
    sign = -1 if measure.metric.higher else 1
    rows.sort(key=lambda row: ("all" not in row.means, sign * row.means.get("all", 0.0), row.params))
    return SuiteTable(title, measure.metric.name, columns if several else ("all",), tuple(rows))


def _means(suite: Suite, found: Mapping[str, tuple[Measure, Row]]) -> Means:
    by_set = {name: measure.values[row.number].mean for name, (measure, row) in found.items()}
    means = {
        group: fmean(by_set[name] for name in names)
        for group, names in suite.groups.items()
        if by_set.keys() >= names.keys()
    }
    if len(means) == len(suite.groups):
        means |= {"groups": fmean(means.values()), "all": fmean(by_set.values())}
    row = next(iter(found.values()))[1]
    return Means(row.method, main_knobs(row.config), row.params, by_set, means)


def _key(row: Row) -> str:
    """The setting without its data set and its learning rates."""
    setting: dict[str, Any] = deepcopy(dict(row.runs[0].setting))
    setting.pop("data", None)
    optimizer = (setting.get("train") or {}).get("optimizer") or {}
    for name in FREE:
        optimizer.pop(name, None)
    return json.dumps(setting, sort_keys=True)
