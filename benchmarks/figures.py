"""The paper's figures at embedded size: runs the sweeps, draws them, and writes the tables of docs/figures.md.

    python benchmarks/figures.py                  # all; two hours on two CPU cores
    python benchmarks/figures.py --only 4 6b      # some
    python benchmarks/figures.py --fill           # only draw and write what records/figures.jsonl has

Each figure is `superlora sweep digits_figN`, whose runs lie in runs/sweeps and are not repeated once they are done.
What is shown is kept in records/figures.jsonl: a line for every setting of every figure, with its values by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import pages
from pictures import Point, canvas, name_points, save
from recorded import Records, Row

RECORDS, SWEEPS = Records("figures.jsonl", itemgetter("figure")), pages.ROOT / "runs" / "sweeps"
PAGE, PICTURES = pages.DOCS / "figures.md", pages.DOCS / "figures"
GENERATED = {"loss": "noise loss", "fid": "FID", "is_l1": "IS-l1", "class_accuracy": "class accuracy"}
CLASSIFIED = {"accuracy": "test accuracy"}
ALONG = {"groups": "G", "rank": "r", "ratio": "ρ"}  # what changes along a line of a plot


class Figure(NamedTuple):
    """A figure: its sweep's name after `digits_fig`, and the columns shown, of which the first two are drawn."""

    name: str
    columns: dict[str, str]

    @property
    def sweep(self) -> str:
        return f"digits_fig{self.name}"


FIGURES = [
    *(Figure(name, CLASSIFIED) for name in ("4", "15")),
    *(Figure(name, GENERATED) for name in ("5a", "5b", "6a", "6b", "7a", "7b")),
]


def sweep(figure: Figure) -> None:
    """Run the missing runs of a figure."""
    subprocess.run([sys.executable, "-m", "superlora_cli", "sweep", figure.sweep], check=True)


def settings(figure: Figure) -> list[Row]:
    """A row per setting of a figure's finished runs: method, knobs, parameters, and its values by seed."""
    file = SWEEPS / figure.sweep / "results.jsonl"
    found: dict[str, Row] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        run = json.loads(line)
        if run["status"] != "completed":
            continue
        knobs = {key.removeprefix("adapter."): value for key, value in run["overrides"].items() if key != "seed"}
        method = run["recipe"].removeprefix("digits_").removeprefix("unet_")
        method = method.rstrip("345d") if "order" in knobs else method
        about = {"figure": figure.name, "method": method, "knobs": knobs, "parameters": run["params"]["adapter"]}
        row = found.setdefault(json.dumps([method, knobs]), {**about, "seeds": [], "values": {}})
        row["seeds"].append(run["seed"])
        for column in figure.columns:
            row["values"].setdefault(column, []).append(round(run["metrics"][column], 5))
    return list(found.values())


def rows_of(figure: Figure) -> list[Row]:
    """The recorded rows of a figure."""
    return [row for row in RECORDS.rows() if row["figure"] == figure.name]


def series_of(row: Row) -> str:
    """The line of a plot that a row belongs to: its method and the knobs that are constant along the line."""
    fixed = [f"{key} {value}" for key, value in row["knobs"].items() if key not in ALONG]
    return ", ".join([row["method"], *fixed])


def table(figure: Figure, rows: Sequence[Row]) -> str:
    """In Markdown, by number of parameters."""
    titles = " | ".join(figure.columns.values())
    lines = [f"| parameters | | {titles} |", "|---:|---|" + "---:|" * len(figure.columns)]
    for row in sorted(rows, key=lambda row: row["parameters"]):
        cells = []
        for column in figure.columns:
            values = row["values"][column]
            spread = f" ({min(values):.3g}–{max(values):.3g})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}")
        knobs = ", ".join(f"{key} {value}" for key, value in row["knobs"].items())
        title = f"`{row['method']}`{f', {knobs}' if knobs else ''}"
        lines.append(f"| {row['parameters']:,} | {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """The first two columns against parameters, one line per series, each point labelled with the knobs that vary."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    shown = list(figure.columns.items())[:2]
    picture = canvas(5.5 * len(shown), 4)
    for axes, (column, title) in zip(picture.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        names: list[Point] = []
        for series in dict.fromkeys(map(series_of, rows)):
            own = sorted((row for row in rows if series_of(row) == series), key=lambda row: row["parameters"])
            at, means = [row["parameters"] for row in own], [statistics.mean(row["values"][column]) for row in own]
            axes.plot(at, means, "o-", ms=4, lw=1, label=series)
            for row, x, y in zip(own, at, means, strict=True):
                name = " ".join(f"{sign}{row['knobs'][key]}" for key, sign in ALONG.items() if key in row["knobs"])
                names.append((x, y, name))
        axes.set(xscale="log", xlabel="parameters", ylabel=title)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.2)
        name_points(axes, names, fontsize=6, color="#555")
    picture.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=7, ncols=2)
    PICTURES.mkdir(exist_ok=True)
    save(picture, PICTURES / f"{figure.name}.svg")


def places() -> pages.Places:
    """The generated part of the page: a table for every figure that has runs."""
    return {(PAGE, figure.name): table(figure, rows) for figure in FIGURES if (rows := rows_of(figure))}


def main() -> None:
    """Run, record, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[figure.name for figure in FIGURES], help="figures")
    parser.add_argument("--fill", action="store_true", help="draw and fill the page, and run nothing")
    options = parser.parse_args()
    for figure in FIGURES:
        if options.only and figure.name not in options.only:
            continue
        if not options.fill:
            sweep(figure)
            RECORDS.replace(figure.name, settings(figure), [one.name for one in FIGURES])
        if rows := rows_of(figure):
            draw(figure, rows)
    pages.fill(places())


if __name__ == "__main__":
    main()
