"""`superlora report`: finished runs in, one page of plots, tables and images out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import print_json, print_pairs, stderr_console
from superlora_cli.errors import UsageError


def command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that hold finished runs.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="The page to write; its plots go to FILE-figures. Default: DIR/report.html."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Compare all updates with that of this run, e.g. a dense one."),
    ] = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="Report this metric only.")] = None,
    tolerance: Annotated[
        float,
        typer.Option(help="Loss to accept for a smaller ratio: absolute for accuracy, relative for other metrics."),
    ] = 0.01,
    budgets: Annotated[
        str | None, typer.Option(metavar="100,1000", help="Parameter budgets; default: powers of ten.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is not a report.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare finished runs on one page.

    One HTML page, readable offline, with metrics against parameters and their Pareto fronts, learning curves, tables,
    images and configurations; its plots are also written as files.
    """
    limits = _budgets(budgets)
    from superlora_cli.commands.report import report

    with stderr_console().status("reading runs") as status:
        done = report(
            folders, out=out, against=against, metric=metric, tolerance=tolerance, budgets=limits, force=force,
            say=status.update,
        )  # fmt: skip
    print_json(done) if as_json else _show(done)


def _budgets(text: str | None) -> list[int]:
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal():
            raise UsageError(f"'{part}' is not a number of parameters", where="--budgets", hint="e.g. 100,1000")
    return [int(part) for part in parts]


def _show(done: dict[str, Any]) -> None:
    rows = [("runs", f"{done['runs']:,}")]
    for table in done.get("suites", ()):
        rows += [("suite", table["title"]), ("parameters", " · ".join(table["columns"]))]
        for means in table["rows"]:
            shown = [f"{means['means'][name]:.4g}" if name in means["means"] else "—" for name in table["columns"]]
            name = ", ".join(filter(None, (means["method"], means["knobs"])))
            rows.append((f"{means['params']:>10,}", f"{' · '.join(shown)}  {name}"))
    for section in done["sections"]:
        rows.append(("section", f"{section['title']}, {len(section['rows'])} configurations"))
        for measure in section["measures"][:1]:
            means = {value["row"]: value["mean"] for value in measure["values"]}
            rows.append(("parameters", f"{measure['metric']} of the configurations on the front"))
            for number in measure["front"]:
                row = section["rows"][number]
                name = ", ".join(filter(None, (row["method"], row["configuration"])))
                rows.append((f"{row['params']:>10,}", f"{means[number]:.4g}  {name}"))
        if "geometry" in section:
            rows.append(("compared with", section["geometry"]["against"]))
    rows += [("skipped", f"{one['run']}: {one['why']}") for one in done["skipped"]]
    rows += [("note", note) for note in done["notes"]]
    print_pairs(f"wrote {done['report']}", rows)
