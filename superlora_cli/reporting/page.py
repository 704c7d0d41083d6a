"""The report as one self-contained HTML page with pictures, tables, images and configurations."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from superlora_cli.recipe.yaml import dump_yaml
from superlora_cli.reporting.geometry import PRINCIPAL, at_random
from superlora_cli.reporting.metrics import METRICS
from superlora_cli.reporting.nearness import MEASURES, Nearness
from superlora_cli.reporting.plots import looks_of, to_page
from superlora_cli.reporting.sections import Measure, Row, Section
from superlora_cli.reporting.suites import SuiteTable

CAPTIONED = ("fid", "is_l1", "class_accuracy")  # metrics shown under generated images


@dataclass(frozen=True)
class Plot:
    """A picture: its file name, its SVG and its caption."""

    file: str
    svg: str
    caption: str


@dataclass(frozen=True)
class View:
    """A section and what the page shows of it."""

    section: Section
    plots: Sequence[Plot]
    findings: Sequence[str]
    nearness: Nearness | None = None
    geometry: Sequence[Plot] = ()


def page(title: str, views: Sequence[View], notes: Sequence[str], suites: Sequence[SuiteTable] = ()) -> str:
    """The page.

    Args:
        suites: means over the data sets of suites, which stand first.
        notes: what a reader should know about runs that are left out, a line each.
    """
    runs = sum(len(row.runs) for view in views for row in view.section.rows)
    settings = sum(len(view.section.rows) for view in views)
    return _template().render(
        title=title,
        summary=f"{runs:,} runs of {settings:,} configurations",
        figures=[plot.file for view in views for plot in (*view.plots, *view.geometry)],
        suites=[_suite(table) for table in suites],
        sections=[_section(view, f"s{number}") for number, view in enumerate(views)],
        notes=notes,
    )


@cache
def _template() -> Any:
    from jinja2 import Environment

    text = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True).from_string(text)


def _suite(table: SuiteTable) -> dict[str, Any]:
    metric = METRICS[table.metric]
    heads = [_head("method", False), _head("configuration", False), _head("parameters"), *map(_head, table.columns)]
    rows = []
    for row in table.rows:
        cells = [_text(row.method), _text(row.knobs), _number(row.params, f"{row.params:,}")]
        for column in table.columns:
            mean = row.means.get(column)
            cells.append(_number(mean, "—" if mean is None else metric.text(mean)))
        rows.append(cells)
    words = f"Means of {metric.label} over data sets, each at the learning rate that is best there; best first."
    if "groups" in table.columns:
        words += " groups: of the means of the groups; all: of the data sets."
    return {"title": table.title, "heads": heads, "rows": rows, "legend": words}


def _section(view: View, prefix: str) -> dict[str, Any]:
    section, nearness = view.section, view.nearness
    colours = {name: look["color"] for name, look in looks_of(row.method for row in section.rows).items()}
    fronts = [{row.number for row in measure.front(section.rows)} for measure in section.measures]
    head = any(run.head for row in section.rows for run in row.runs)
    heads = [_head("method", False), _head("configuration", False), _head("parameters")]
    heads += [_head("head")] if head else []
    heads += [_head("bytes"), _head("seeds")]
    found = any(row.found_rates for row in section.rows)
    heads += [_head("rate found")] if found else []
    heads += [_head(measure.label) for measure in section.measures]
    if section.measures:
        heads[-len(section.measures)]["sorted"] = "descending" if section.measures[0].metric.higher else "ascending"
    heads += [_head(label) for label in MEASURES.values()] if nearness else []
    rows = []
    for row in _ordered(section):
        cells = [
            _text(row.method, colour=colours[row.method]),
            _text(row.knobs),
            _number(row.params, f"{row.params:,}"),
        ]
        cells += [_number(row.runs[0].head, f"{row.runs[0].head:,}")] if head else []
        size = round(sum(run.bytes for run in row.runs) / len(row.runs))
        cells += [_number(size, f"{size:,}"), _number(len(row.runs), str(len(row.runs)))]
        cells += [_rates(row)] if found else []
        for measure, front in zip(section.measures, fronts, strict=True):
            cells.append(_measured(measure, row) | {"front": row.number in front})
        for key in MEASURES if nearness else ():
            mean = nearness.mean(row.number, key) if nearness else None
            cells.append(_number(mean.mean, f"{mean.mean:.3f}") if mean else _number(None, "—"))
        rows.append(cells)
    legend = "Best first. Means over seeds, ± their standard deviation; values on the Pareto front are coloured."
    if head:
        legend += " A head trained with the adapter is not counted in its parameters."
    return {
        "title": section.title,
        "plots": _plots(view.plots, prefix),
        "findings": view.findings,
        "heads": heads,
        "rows": rows,
        "legend": legend + (" d_L, d_R and d_E are means over the weights." if nearness else ""),
        "geometry": _geometry(view, nearness, f"{prefix}g") if nearness else None,
        "grids": [grid for row in section.rows if (grid := _grid(section, row))],
        "configurations": [
            {
                "name": f"{row.name}, {row.params:,} parameters",
                "runs": ", ".join(str(run.path) for run in row.runs),
                "yaml": dump_yaml(row.runs[0].recipe),
            }
            for row in _ordered(section)
        ],
    }


def _ordered(section: Section) -> Sequence[Row]:
    """The rows by the first metric, best first, and those without it last."""
    if not section.measures:
        return section.rows
    sign, values = (-1 if section.measures[0].metric.higher else 1), section.measures[0].values
    return sorted(section.rows, key=lambda row: sign * values[row.number].mean if row.number in values else math.inf)


def _geometry(view: View, nearness: Nearness, prefix: str) -> dict[str, Any]:
    names = {row.number: row.name for row in view.section.rows}
    rows = []
    for number, runs in nearness.found.items():
        for row, similarities in zip([names[number]] * len(runs), runs, strict=True):
            for weight, one in similarities.items():
                values = [getattr(one, key) for key in MEASURES]
                cells = [_number(value, "—" if value is None else f"{value:.3f}") for value in values]
                rows.append([_text(row), _text(weight), *cells, _number(one.vectors, str(one.vectors))])
    words = (
        f"d_L and d_R: how far the {PRINCIPAL} leading left and right singular vectors span the same subspace (1: the "
        "same); fewer vectors for an update of lower rank. d_E: the distance of the two updates, relative to the norm "
        "of the reference. (Appendix A.4 of the paper, Eq. 5 to 7.)"
    )
    if nearness.shape:
        out, width = nearness.shape
        left, right = at_random(out, min(PRINCIPAL, out)), at_random(width, min(PRINCIPAL, width))
        words += f" Dotted: unrelated subspaces, d_L {left:.3f} and d_R {right:.3f}."
    heads = [_head("configuration", False), _head("weight", False), *map(_head, (*MEASURES.values(), "vectors"))]
    plots = _plots(view.geometry, prefix)
    return {"against": nearness.against, "words": words, "plots": plots, "heads": heads, "rows": rows}


def _plots(plots: Sequence[Plot], prefix: str) -> list[dict[str, Any]]:
    from markupsafe import Markup

    return [
        {"svg": Markup(to_page(plot.svg, f"{prefix}p{number}", plot.caption)), "caption": plot.caption}
        for number, plot in enumerate(plots)
    ]


def _grid(section: Section, row: Row) -> Mapping[str, str] | None:
    """The images of the first run that has any, with the metrics measured on them."""
    for run in row.runs:
        if run.samples and run.samples.grid:
            measured = [
                f"{measure.label} {measure.metric.text(value)}"
                for measure in section.measures
                if measure.metric.name in CAPTIONED and row.number in measure.values
                if (value := run.samples.metrics.get(measure.metric.name)) is not None
            ]
            caption = "; ".join([f"{row.name}, {row.params:,} parameters", *measured])
            return {"png": base64.b64encode(run.samples.grid.read_bytes()).decode(), "caption": caption}
        if run.picture:
            caption = f"{row.name}, {row.params:,} parameters: the validation prompts at {run.picture.stem}"
            return {"png": base64.b64encode(run.picture.read_bytes()).decode(), "caption": caption}
    return None


def _head(text: str, number: bool = True) -> dict[str, Any]:
    return {"text": text, "number": number}


def _text(text: str, **more: Any) -> dict[str, Any]:
    return {"text": text, "value": text, "number": False, **more}


def _number(value: float | None, text: str, **more: Any) -> dict[str, Any]:
    return {"text": text, "value": "" if value is None else repr(value), "number": True, **more}


def _rates(row: Row) -> dict[str, Any]:
    """`0.016`, or `0.014–0.02` of several seeds."""
    rates = sorted(set(row.found_rates))
    return _number(rates[0] if rates else None, "–".join(f"{rate:g}" for rate in (rates[:1] + rates[1:][-1:])) or "—")


def _measured(measure: Measure, row: Row) -> dict[str, Any]:
    spread = measure.values.get(row.number)
    if spread is None:
        return _number(None, "—")
    beside = f"± {spread.std:.2g}" if spread.count > 1 else ""
    return _number(spread.mean, measure.metric.text(spread.mean), beside=beside)
