"""What a report shows of runs: a section per task, base and data set, and in it a row per setting, over its seeds."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.recipe.overrides import flat
from superlora_cli.reporting.methods import method_name
from superlora_cli.reporting.metrics import METRICS, Metric, Spread
from superlora_cli.reporting.pareto import front
from superlora_cli.reporting.runs import Run
from superlora_cli.table import load_extensions
from superlora_cli.tasks import TASKS

MAKING = ("num", "sampler", "steps", "guidance")  # of images: what their metrics depend on apart from the model


@dataclass(frozen=True)
class Row:
    """A setting: its runs with different seeds. `knobs` says how it differs from others of its method."""

    number: int
    method: str
    knobs: str
    runs: tuple[Run, ...]

    @property
    def params(self) -> int:
        """Trained parameters, without a new head."""
        return self.runs[0].params

    @property
    def config(self) -> AdapterConfig | None:
        """The adapter's knobs."""
        return self.runs[0].config

    @property
    def found_rates(self) -> tuple[float, ...]:
        """The learning rates of its runs, where a range test found them."""
        return tuple(run.found_rate for run in self.runs if run.found_rate is not None)

    @property
    def name(self) -> str:
        """Method and knobs."""
        return f"{self.method}, {self.knobs}" if self.knobs else self.method


@dataclass(frozen=True)
class Measure:
    """A metric of the rows, all measured in the same way.

    Attributes:
        by: for metrics of generated images, extractor and reference where these differ between runs; else "".
        values: by the row's number; rows without a finite value are missing.
        validation: the same on the validation split; {} unless all those rows have it.
        before: the value of the unadapted base, where runs recorded it.
    """

    metric: Metric
    by: str
    values: Mapping[int, Spread]
    validation: Mapping[int, Spread]
    before: float | None = None

    @property
    def label(self) -> str:
        """The metric's name, and how it was measured."""
        return f"{self.metric.label} ({self.by})" if self.by else self.metric.label

    @property
    def chosen_by(self) -> str:
        """The name of `choice`: `validation accuracy`, or the label."""
        return self.label.replace("test", "validation") if self.validation else self.label

    def choice(self, row: Row) -> float:
        """The value by which rows are ranked: the mean on the validation split where known, else the reported mean."""
        return (self.validation or self.values)[row.number].mean

    def best(self, rows: Iterable[Row]) -> list[Row]:
        """The rows that have a value, best first by `choice`; of equal ones the smaller first."""
        sign = -1 if self.metric.higher else 1
        known = [row for row in rows if row.number in self.values]
        return sorted(known, key=lambda row: (sign * self.choice(row), row.params))

    def front(self, rows: Iterable[Row]) -> list[Row]:
        """The rows on the Pareto front, by number of parameters."""
        known = [row for row in rows if row.number in self.values]
        costs, means = [float(row.params) for row in known], [self.values[row.number].mean for row in known]
        return [known[index] for index in front(costs, means, higher=self.metric.higher)]


@dataclass(frozen=True)
class Section:
    """Runs that can be compared: one task, base and data set. Rows are sorted by number of parameters."""

    task: str
    model: str
    data: str
    rows: tuple[Row, ...]
    measures: tuple[Measure, ...]

    @property
    def title(self) -> str:
        """`classification: glyphs_vit on digits`."""
        return _title(self.task, self.model, self.data)


def sections(runs: Sequence[Run], metric: Metric | None = None) -> tuple[list[Section], list[str]]:
    """The sections by title, and notes for the reader.

    Args:
        metric: the only one to report.

    Raises:
        UsageError: no run has that metric.
    """
    notes: list[str] = []
    by_subject: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        by_subject[run.subject].append(run)
    if not {task for task, _, _ in by_subject} <= {*TASKS}:
        load_extensions()  # one of them may add the task, with its metrics
    found, had = [], set()
    for subject, own in sorted(by_subject.items()):
        rows = _rows(own, notes)
        measures = _measures(rows, notes)
        notes += [f"{_title(*subject)}: {note}" for note in _told(own)]
        notes += [f"the images of {_title(*subject)} differ in {words}" for words in _unlike(own)]
        had |= {measure.metric.name for measure in measures}
        measures = [measure for measure in measures if metric in (None, measure.metric)]
        if measures or metric is None:
            found.append(Section(*subject, tuple(rows), tuple(measures)))
    if not found:
        hint = "they have " + ", ".join(sorted(had)) if had else "superlora eval measures them"
        raise UsageError(f"no run has the metric '{metric.name if metric else ''}'", where="--metric", hint=hint)
    return found, notes


def _title(task: str, model: str, data: str) -> str:
    return f"{task}: {model} on {data}"


def _rows(runs: Sequence[Run], notes: list[str]) -> list[Row]:
    """A row per setting, with the first run of each seed."""
    settings: dict[str, dict[Hashable, Run]] = defaultdict(dict)
    for run in runs:
        seen = settings[json.dumps(run.setting, sort_keys=True)]
        if run.seeds in seen:
            notes.append(f"{run.path} repeats {seen[run.seeds].path}, seed included: left out")
        seen.setdefault(run.seeds, run)
    groups = [tuple(seen.values()) for seen in settings.values()]
    named = [(method_name(own[0].config), main_knobs(own[0].config), own) for own in groups]
    alike: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for method, knobs, own in named:
        alike[method, knobs].append(own[0])
    made = [
        (method, " · ".join(filter(None, (knobs, *_differences(own[0], alike[method, knobs])))), own)
        for method, knobs, own in named
    ]
    made.sort(key=lambda row: (row[2][0].params, row[0], row[1]))
    return [Row(number, *row) for number, row in enumerate(made)]


def main_knobs(config: AdapterConfig | None) -> str:
    """The main knobs: `G 4 · rank 2 · ρ 0.1`, and d of an F_in."""
    if config is None or not config.adapts:
        return ""
    words = []
    if isinstance(config.groups, int) or (config.order > 1 and config.fold != "none"):
        words.append(f"G {config.groups}")
    if config.order > 1:
        ranks = config.ranks
        words.append(f"rank {ranks[0] if len(set(ranks)) == 1 else ','.join(map(str, ranks))}")
    if config.inner:
        words.append(f"d {config.inner.dim}")
    if config.splits > 1:
        words.append(f"K {config.splits}" + (f" · f {config.split_dim}" if config.combine == "kronecker" else ""))
    if config.ratio != 1:
        words.append(f"ρ {config.ratio:g}")
    return " · ".join(words)


def _differences(run: Run, others: Sequence[Run]) -> list[str]:
    """`alpha 2`, `train.steps 300`: the keys in which runs of the same name differ."""
    settings = [flat(other.setting) for other in others]
    own, keys = flat(run.setting), sorted({key for one in settings for key in one})
    return [
        f"{key.removeprefix('adapter.')} {own.get(key, '(default)')}"
        for key in keys
        if len({json.dumps(one.get(key)) for one in settings}) > 1
    ]


def _measures(rows: Sequence[Row], notes: list[str]) -> list[Measure]:
    """Every metric that some run has, once for each way it was measured."""
    runs = [run for row in rows for run in row.runs]
    ways = _ways([run for run in runs if run.samples])
    found = []
    for metric in METRICS.values():
        groups = ways if metric.of_images else [("", runs)]
        for by, group in groups:
            numbers = {id(run): _number(run, metric) for run in group}
            for run in group:
                if (number := numbers[id(run)]) is not None and number != number:
                    notes.append(f"{run.path}: {metric.label} is not a number: left out")
            values = _spreads(rows, numbers)
            chosen = {} if metric.of_images else {id(run): run.validation.get(metric.name) for run in group}
            validation = _spreads(rows, chosen)
            before = next((r.before[metric.name] for r in group if metric.name in r.before), None)
            if values:
                whole = validation.keys() >= values.keys()
                found.append(Measure(metric, by, values, validation if whole else {}, before))
    return found


def _spreads(rows: Sequence[Row], numbers: Mapping[int, float | None]) -> dict[int, Spread]:
    """The spread of every row with at least one finite number; `numbers` is by the `id` of the run."""
    return {
        row.number: spread
        for row in rows
        if (spread := Spread.of(v for run in row.runs if (v := numbers.get(id(run))) is not None))
    }


def _told(runs: Sequence[Run]) -> list[str]:
    """The notes on the data of the runs, each once, with the number of runs if it is not of all."""
    counts = Counter(note for run in runs for note in dict.fromkeys(run.notes))
    return [note if n == len(runs) else f"{note} ({n} of {len(runs)} runs)" for note, n in counts.items()]


def _unlike(runs: Sequence[Run]) -> list[str]:
    """How the settings of generating images differ between runs: `steps: 25 and 50`."""
    made = [run.samples.made for run in runs if run.samples]
    values = {key: sorted({str(one.get(key)) for one in made}) for key in MAKING}
    return [f"{key}: {' and '.join(words)}" for key, words in values.items() if len(words) > 1]


def _number(run: Run, metric: Metric) -> float | None:
    """None where the run was not measured this way; NaN where the value is not finite."""
    if metric.of_images:
        return run.samples.metrics.get(metric.name) if run.samples else None
    return run.metrics.get(metric.name)


def _ways(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs whose images were measured in the same way, with a name for it: "" where there is only one."""
    if not runs:
        return []
    from superlora_cli.generation.metrics import check_comparable

    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            try:
                check_comparable(_samples(group[0]).settings, _samples(run).settings)
            except MismatchError:
                continue
            group.append(run)
            break
        else:
            groups.append([run])
    if len(groups) == 1:
        return [("", groups[0])]
    names = [f"{_samples(group[0]).settings.get('extractor')}, {_samples(group[0]).reference}" for group in groups]
    named = [
        (name if names.count(name) == 1 else f"{name}, way {names[: i + 1].count(name)}", group)
        for i, (name, group) in enumerate(zip(names, groups, strict=True))
    ]
    return sorted(named, key=lambda pair: pair[0])


def _samples(run: Run) -> Any:
    return run.samples
