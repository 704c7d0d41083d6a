"""A report on finished runs: collects and compares them, and writes one page and its plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.reporting import place
from superlora_cli.reporting.facts import facts
from superlora_cli.reporting.findings import best_within, in_words, smallest_ratios
from superlora_cli.reporting.metrics import METRICS
from superlora_cli.reporting.nearness import Nearness
from superlora_cli.reporting.page import Plot, View, page
from superlora_cli.reporting.plots import (
    confusion_plot,
    curves_plot,
    geometry_plot,
    pareto_plot,
    shown_curves,
    summary_plot,
    to_file,
)
from superlora_cli.reporting.runs import STOPPED, Skipped, collect
from superlora_cli.reporting.sections import Row, Section, sections
from superlora_cli.reporting.suites import suite_tables
from superlora_cli.tasks.classification.confusion_table import ConfusionTable


def report(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    against: Path | None = None,
    metric: str | None = None,
    tolerance: float = 0.01,
    budgets: Sequence[int] = (),
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a report on all finished runs in or below `folders`.

    Args:
        out: the page; its plots go to a folder next to it. Default: report.html in the first folder.
        against: a run, usually dense, whose update those of the other runs on its base and data are compared with.
        metric: report only this one.
        tolerance: how much worse a smaller ρ may be: absolute for metrics that are fractions, else relative.
        budgets: numbers of parameters; default: powers of ten.
        force: overwrite a file that is not a report.
        say: called with a line about each step that takes time.

    Returns:
        report, figures (paths), runs, skipped ({run, why}), notes, sections (title, rows, measures with their front,
        ratios, budgets, and geometry if asked for), and suites (title, metric, columns, rows) if there are runs of one.

    Raises:
        UsageError: there are no runs, the metric is unknown, or the page cannot be written.
        MismatchError: the updates to compare belong to different bases.
    """
    if not 0 <= tolerance < float("inf"):
        raise UsageError(f"the tolerance is {tolerance}", where="--tolerance", hint="0 or more, e.g. 0.01")
    if any(budget < 1 for budget in budgets):
        raise UsageError(f"a budget of {min(budgets)} parameters", where="--budgets", hint="1 or more")
    wanted = METRICS.named(metric, where="--metric") if metric is not None else None
    runs, skipped = collect(folders)
    out = out or folders[0] / "report.html"
    place.check(out, force=force)
    made, notes = sections(runs, wanted)
    nearnesses = _nearnesses(made, against, say) if against is not None else {}
    views, told = [], []
    for section in made:
        ratios, budgeted = smallest_ratios(section, tolerance), best_within(section, budgets)
        near = nearnesses.get(section.title)
        prefix = f"{_slug(section.title)}-" if len(made) > 1 else ""
        say(f"drawing {section.title}")
        views.append(_view(section, in_words(ratios, budgeted), near, prefix))
        told.append(facts(section, ratios, budgeted, near))
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
    suites = suite_tables(made)
    text = page(title, views, [*_in_lines(skipped), *notes], suites)
    plots = [plot for view in views for plot in (*view.plots, *view.geometry)]
    written = place.write(out, text, {plot.file: to_file(plot.svg) for plot in plots}, force=force)
    return {
        "report": str(out),
        "figures": [str(path) for path in written],
        "runs": sum(len(row.runs) for section in made for row in section.rows),
        "skipped": [{"run": one.path, "why": one.why} for one in skipped],
        "notes": notes,
        "sections": told,
        **({"suites": [asdict(table) for table in suites]} if suites else {}),
    }


def _in_lines(skipped: Sequence[Skipped]) -> Iterator[str]:
    """A line per skipped run; a single one for runs that `superlora tune` stopped, which may be many."""
    for one in skipped:
        if one.why != STOPPED:
            yield f"Skipped {one.path}: {one.why}"
    if stopped := sum(one.why == STOPPED for one in skipped):
        yield f"Skipped {stopped} runs that were {STOPPED}"


def _nearnesses(made: Sequence[Section], against: Path, say: Callable[[str], None]) -> dict[str, Nearness]:
    """The geometry of the section that the run `against` belongs to, by the section's title."""
    say("loading torch")
    from superlora_cli.commands.nearness import Reference, nearness

    reference = Reference(against)
    for section in made:
        if (section.task, section.model, section.data) == reference.subject:
            found = nearness(section, reference, lambda run: say(f"comparing {run}"))
            return {section.title: found} if found.found else {}
    task, model, data = reference.subject
    raise MismatchError(
        f"no other run is {task} of {model} on {data}", where=str(against), hint="use runs with the same base and data"
    )


def _view(section: Section, findings: Sequence[str], nearness: Nearness | None, prefix: str) -> View:
    plots, geometry, names = [], [], set()
    for measure in section.measures:
        name = prefix + _slug(measure.label if measure.by else measure.metric.name)
        while name in names:
            name += "-"
        names.add(name)
        caption = f"{measure.label}, {'higher' if measure.metric.higher else 'lower'} is better"
        plots.append(Plot(f"{name}.svg", pareto_plot(section, measure, name), caption))
    if curves := shown_curves(section):
        name = f"{prefix}curves"
        caption = "learning curves" if len(curves) == len(section.rows) else f"learning curves, the best {len(curves)}"
        plots.append(Plot(f"{name}.svg", curves_plot(section, name), caption))
    if found := _confusion(section):
        (row, table), name = found, f"{prefix}confusion"
        caption = f"confusion matrix of {row.name}, {int(table.counts.sum()):,} test images of one run"
        plots.append(Plot(f"{name}.svg", confusion_plot(table, name), caption))
    if nearness:
        rows = [row for row in section.rows if row.number in nearness.found]
        name = f"{prefix}geometry"
        caption = "every weight of every run, as in the paper's Fig. 14"
        geometry.append(Plot(f"{name}.svg", geometry_plot(nearness, rows, name), caption))
        if section.measures:
            first, name = section.measures[0], f"{prefix}geometry-summary"
            svg = summary_plot(nearness, section, first, name)
            geometry.append(Plot(f"{name}.svg", svg, f"{first.label} against the means over all weights"))
    return View(section, plots, findings, nearness, geometry)


def _confusion(section: Section) -> tuple[Row, ConfusionTable] | None:
    """The confusion matrix of the best row's first run, if that has one."""
    for row in section.measures[0].best(section.rows)[:1] if section.measures else ():
        if table := row.runs[0].confusion:
            return row, table
    return None


def _slug(text: str) -> str:
    """Text as a file name that any file system accepts.

    >>> _slug("classification: glyphs_vit on torch/svhn")
    'classification-glyphs_vit-on-torch-svhn'
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")
