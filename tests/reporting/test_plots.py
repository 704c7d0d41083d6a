"""Whatever the runs are, every picture shows a point for each: in its colour, inside of the axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from superlora_cli.reporting.geometry import Similarity
from superlora_cli.reporting.nearness import Nearness
from superlora_cli.reporting.plots import (
    confusion_plot,
    curves_plot,
    geometry_plot,
    looks_of,
    pareto_plot,
    summary_plot,
)
from superlora_cli.reporting.runs import collect
from superlora_cli.reporting.sections import Section, sections
from superlora_cli.tasks.classification.confusion_table import ConfusionTable
from tests.reporting.folders import make_run

RATES = (0.1, 0.2, 0.3)
FOLDERS = {
    "one run": [("digits_lora", "seed=0", 100, 0.9)],
    "equal counts": [("digits_lora", f"train.optimizer.lr={rate}", 100, 0.8 + rate / 4) for rate in RATES],
    "equal counts and values": [("digits_lora", f"train.optimizer.lr={rate}", 100, 0.5) for rate in RATES],
    "one parameter": [("digits_lora", "seed=0", 1, 0.9)],
    "many sizes": [("digits_lorta5d", "seed=0", 46, 0.7), ("digits_dense", "seed=0", 10**6, 0.9)],
}
Pixels = NDArray[np.int64]
Drawn = Callable[..., list[Pixels]]


@pytest.fixture(params=FOLDERS.values(), ids=FOLDERS)
def section(request: pytest.FixtureRequest, tmp_path: Path) -> Section:
    for number, (recipe, override, params, accuracy) in enumerate(request.param):
        make_run(tmp_path / str(number), recipe, override, accuracy=accuracy, validation=accuracy, params=params)
    (found,), _ = sections(collect([tmp_path])[0])
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Draws a picture and gives the pixels inside of each of its axes."""
    figures: list[Figure] = []
    save = Figure.savefig

    def remember(figure: Figure, *words: Any, **more: Any) -> None:
        save(figure, *words, **more)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", remember)

    def draw(plot: Callable[..., str], *given: Any) -> list[Pixels]:
        plot(*given, "salt")
        canvas = FigureCanvasAgg(figures[-1])
        canvas.draw()
        inches = figures[-1].get_tightbbox()
        assert min(inches.x0, inches.y0) >= 0
        assert np.all(figures[-1].get_size_inches() >= (inches.x1, inches.y1))
        pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)
        corners = [map(round, axes.get_window_extent().extents) for axes in figures[-1].axes]
        return [pixels[bottom:top, left:right] for left, bottom, right, top in corners]

    return draw


def shows(pixels: Pixels, colour: str) -> bool:
    wanted = np.array([round(255 * part) for part in to_rgb(colour)])
    return bool((abs(pixels - wanted).max(-1) < 8).sum() >= 9)


def is_coloured(pixels: Pixels) -> bool:
    return bool((pixels.max(-1) - pixels.min(-1) > 60).sum() >= 9)


def colours_of(section: Section) -> list[str]:
    return [look["color"] for look in looks_of(row.method for row in section.rows).values()]


def test_a_metric_against_parameters(section: Section, drawn: Drawn) -> None:
    for measure in section.measures:
        (inside,) = drawn(pareto_plot, section, measure)
        assert all(shows(inside, colour) for colour in colours_of(section))


def test_learning_curves(section: Section, drawn: Drawn) -> None:
    for inside in drawn(curves_plot, section):
        assert is_coloured(inside)


def test_the_confusion_matrix(section: Section, drawn: Drawn) -> None:
    table = section.rows[0].runs[0].confusion
    assert table
    assert table.counts.tolist() == [[4, 0], [1, 5]]
    names = tuple(map(str, range(10)))
    for one in (table, ConfusionTable(names, np.eye(10, dtype=np.int64))):
        inside, _ = drawn(confusion_plot, one)
        assert is_coloured(inside)


@pytest.mark.slow
def test_the_geometry(section: Section, drawn: Drawn) -> None:
    found = {row.number: [{"q": Similarity(0.5, 0.5, 1.0, 5)}] for row in section.rows}
    nearness = Nearness("dense", {"q": ("q",)}, None, found)
    for inside in drawn(summary_plot, nearness, section, section.measures[0]):
        assert all(shows(inside, colour) for colour in colours_of(section))
    assert all(map(is_coloured, drawn(geometry_plot, nearness, section.rows)))
