"""The report's pictures as SVG: a metric against parameters with its Pareto front, and the geometry of the updates."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from superlora_cli.analysis.pictures import columns
from superlora_cli.reporting.geometry import at_random
from superlora_cli.reporting.nearness import MEASURES, Nearness
from superlora_cli.reporting.sections import Measure, Row, Section
from superlora_cli.tasks.classification.confusion_table import ConfusionTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PAPER = "#010203", "#fdfcfb"  # placeholders for the page's colours of text and background
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#ef4444", "#a855f7", "#b45309", "#ec4899", "#64748b", "#84a30f", "#06a5b8")
MARKERS = "osD^vP"
PAIRS = (("left", "right"), ("distance", "right"), ("distance", "left"))  # y and x of Fig. 14's columns
Look = dict[str, Any]  # keyword arguments for drawing a point


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """A colour for every name in alphabetical order, and another marker where colours run out."""
    return {name: _look(index) for index, name in enumerate(sorted(set(names)))}


def _look(index: int) -> Look:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index // len(COLOURS) % len(MARKERS)]}


def pareto_plot(section: Section, measure: Measure, salt: str) -> str:
    """A metric against trained parameters (logarithmic): one point per row, its bar from worst to best seed.

    Grey steps are the front of all rows, coloured ones those of each method. The dotted line is the unadapted
    base, a dashed one a row without adapter parameters (the head alone).
    """
    with _drawing(salt) as figure:
        figure.set_size_inches(8.2, 4.4)
        axes = figure.add_subplot(xscale="log", xlabel="trained parameters", ylabel=measure.label)
        looks = looks_of(row.method for row in section.rows)
        rows = [row for row in section.rows if row.number in measure.values]
        axes.set_xlim(_with_room([max(1, row.params) for row in rows]))
        _steps(axes, measure, measure.front(rows), color=INK, linewidth=3, alpha=0.25)
        if measure.before is not None:
            axes.axhline(measure.before, color=INK, alpha=0.5, linestyle=":", linewidth=1, label="unadapted")
        titles = {}
        for method in sorted({row.method for row in rows}):
            own = [row for row in rows if row.method == method]
            _steps(axes, measure, measure.front(own), color=looks[method]["color"], linewidth=1.2, alpha=0.8)
            for index, row in enumerate(own):
                spread = measure.values[row.number]
                bar = [[spread.mean - spread.low], [spread.high - spread.mean]]
                label = method if index == 0 else None
                if row.params:
                    drawn = axes.errorbar(row.params, spread.mean, yerr=bar, **looks[method], markersize=6, capsize=3,
                                          linestyle="", label=label).lines[0]  # fmt: skip
                else:
                    colour = looks[method]["color"]
                    drawn = axes.axhline(spread.mean, color=colour, linestyle="--", linewidth=1, label=label)
                drawn.set_gid(f"row-{row.number}")
                value = measure.metric.text(spread.mean)
                titles[f"row-{row.number}"] = f"{row.name}: {value} with {row.params:,} parameters"
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
        return _svg(figure, salt, titles)


def curves_plot(section: Section, salt: str) -> str:
    """Learning curves of the best rows by the first metric: training loss, and that metric on the split by which the
    best step was chosen. One line per run, one colour per row.
    """
    rows, first = shown_curves(section), section.measures[0].metric
    with _drawing(salt) as figure:
        figure.set_size_inches(8.2, 4.8)
        left, right = figure.subplots(1, 2)
        left.set(xlabel="step", ylabel="training loss")
        right.set(xlabel="step", ylabel=f"{first.label.removeprefix('test ')} where the best step is chosen")
        for index, row in enumerate(rows):
            look: Look = {**_look(index), "markersize": 2.5, "linewidth": 1}
            for number, run in enumerate(row.runs):
                label = _plain(row.name) if number == 0 else None
                left.plot(*columns(run.history.loss), **look, label=label)
                right.plot(*columns(run.history.scores.get(first.name, ())), **look)
        figure.legend(loc="outside lower left", frameon=False, fontsize="small", ncols=2)
        return _svg(figure, salt, {})


def shown_curves(section: Section) -> list[Row]:
    """The best rows that have a history, as many as there are colours."""
    best = section.measures[0].best(section.rows) if section.measures else []
    return [row for row in best if any(run.history.loss for run in row.runs)][: len(COLOURS)]


def confusion_plot(table: ConfusionTable, salt: str) -> str:
    """Which classes are mistaken for which."""
    with _drawing(salt) as figure:
        table.paint(figure)
        return _svg(figure, salt, {})


def geometry_plot(nearness: Nearness, rows: Sequence[Row], salt: str) -> str:
    """The paper's Fig. 14: one point per weight and run, coloured by row; a panel per kind of weight and for all."""
    kinds = {**nearness.kinds, "all": tuple(name for names in nearness.kinds.values() for name in names)}
    if len(nearness.kinds) == 1:
        kinds.pop("all")
    looks = {row.number: _look(index) for index, row in enumerate(rows)}
    with _drawing(salt) as figure:
        figure.set_size_inches(11, 0.4 + 3.1 * len(kinds))
        grid = figure.subplots(len(kinds), 3, squeeze=False)
        for line, (kind, names) in zip(grid, kinds.items(), strict=True):
            for axes, (y, x) in zip(
                line, (("left", "right"), ("distance", "right"), ("distance", "left")), strict=True
            ):
                axes.set(xlabel=MEASURES[x], ylabel=MEASURES[y], title=_plain(kind) if axes is line[0] else None)
                _chance(axes, nearness.shape, x=x, y=y)
                for row in rows:
                    points = nearness.points(row.number, names, x, y)
                    if points:
                        label = _plain(row.name) if axes is grid[0][0] else None
                        axes.scatter(*zip(*points, strict=True), **_dots(looks[row.number]), label=label)
        figure.legend(loc="outside lower left", frameon=False, fontsize="small", ncols=2)
        return _svg(figure, salt, {})


def summary_plot(nearness: Nearness, section: Section, measure: Measure, salt: str) -> str:
    """The measure against the means of d_L, d_R and d_E over all weights: one point per row, bars over seeds."""
    looks = looks_of(row.method for row in section.rows)
    with _drawing(salt) as figure:
        figure.set_size_inches(11, 3.9)
        panels = figure.subplots(1, 3, sharey=True)
        panels[0].set_ylabel(measure.label)
        titles, named = {}, set()
        for axes, (key, label) in zip(panels, MEASURES.items(), strict=True):
            axes.set_xlabel(f"{label}, mean of the weights")
            for row in section.rows:
                spread, value = nearness.mean(row.number, key), measure.values.get(row.number)
                if spread is None or value is None:
                    continue
                bars = {
                    "xerr": [[spread.mean - spread.low], [spread.high - spread.mean]],
                    "yerr": [[value.mean - value.low], [value.high - value.mean]],
                }
                drawn = axes.errorbar(spread.mean, value.mean, **bars, **looks[row.method], capsize=2, markersize=6,
                                      linestyle="", label=None if row.method in named else row.method)  # fmt: skip
                named.add(row.method)
                drawn.lines[0].set_gid(f"{key}-{row.number}")
                titles[f"{key}-{row.number}"] = f"{row.name}: {spread.mean:.3f}, {measure.metric.text(value.mean)}"
        figure.legend(loc="outside lower left", frameon=False, fontsize="small", ncols=5)
        return _svg(figure, salt, titles)


def to_file(svg: str) -> str:
    """The picture as a file: dark on white."""
    return svg.replace(INK, "#1f2328").replace(PAPER, "#ffffff")


def to_page(svg: str, prefix: str, label: str) -> str:
    """The picture inside a page: in the colours of the page, with unique ids, without the file header."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r'\b(id="|href="#|url\(#)', rf"\1{prefix}-", body)
    head = f'<svg role="img" aria-label="{escape(label, quote=True)}" '
    return body.replace("<svg ", head, 1).replace(INK, "currentColor").replace(PAPER, "none")


def _with_room(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis with room on both sides; at least a factor of ten, however close the values are.

    >>> _with_room([100]) == _with_room([100, 100]), [round(limit) for limit in _with_room([100, 100])]
    (True, [28, 355])
    """
    low, high = min(values), max(values)
    half, middle = max(high / low, 10) ** 0.55, math.sqrt(low * high)
    return middle / half, middle * half


def _steps(axes: Axes, measure: Measure, rows: Sequence[Row], **look: Any) -> None:
    """The front as steps: the best value with at most that many parameters."""
    rows = [row for row in rows if row.params]
    if len(rows) > 1:
        values = [measure.values[row.number].mean for row in rows]
        axes.step([row.params for row in rows], values, where="post", zorder=1, **look)


def _chance(axes: Axes, shape: tuple[int, int] | None, *, x: str, y: str) -> None:
    """Dotted lines where unrelated subspaces would be, if all weights have one shape."""
    if shape is not None:
        look: Look = {"color": INK, "alpha": 0.5, "linestyle": ":", "linewidth": 1}
        side = {"left": shape[0], "right": shape[1]}
        axes.axvline(min(1.0, at_random(side[x])), **look)
        if y in side:
            axes.axhline(min(1.0, at_random(side[y])), **look)


def _plain(text: str) -> str:
    """Text that is not mathematics, even with a dollar sign."""
    return text.replace("$", r"\$")


def _dots(look: Look) -> Look:
    return {**look, "s": 18, "alpha": 0.75, "linewidths": 0}


@contextmanager
def _drawing(salt: str) -> Iterator[Figure]:
    """A figure in the page's colours; its bytes depend only on the numbers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings: Any = {**dict.fromkeys(inked, INK), "svg.hashsalt": salt}
    settings |= dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), PAPER)
    settings |= {"axes.spines.top": False, "axes.spines.right": False}
    settings |= {"axes.grid": True, "grid.alpha": 0.15, "axes.axisbelow": True}
    with mpl.rc_context(settings):
        yield Figure(layout="constrained")


def _svg(figure: Figure, salt: str, titles: Mapping[str, str]) -> str:
    """The figure, with a title that browsers show over each of the named groups."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    for name, title in titles.items():
        text = text.replace(f'<g id="{name}">', f'<g id="{name}"><title>{escape(title)}</title>', 1)
    return text
