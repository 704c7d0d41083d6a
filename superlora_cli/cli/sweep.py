"""`superlora sweep`: a file that describes many runs in, their results out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import print_json, print_pairs, print_table, stderr_console
from superlora_cli.errors import UsageError

if TYPE_CHECKING:
    from superlora_cli.sweeping.plan import SweepPlan


def command(
    sweep: Annotated[
        str, typer.Argument(metavar="SWEEP", help="A sweep file, or the name of a shipped one (superlora ls sweeps).")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the sweep; default: runs/sweeps/<sweep>.")
    ] = None,
    workers: options.Workers = None,
    ray: options.Ray = None,
    index: Annotated[
        int | None, typer.Option(metavar="I", min=0, help="Only the I-th run, counted from 0: for job arrays.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their parameters; train nothing.")
    ] = False,
    as_json: options.AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Train many variants of a recipe, several at a time.

    The results are gathered in one table.

    The same command resumes a sweep that was stopped: finished runs are kept, all others continue from their newest
    checkpoint.
    """
    if ray is not None and index is not None:
        raise UsageError("--ray and --index exclude each other", where="superlora sweep", hint="give one of them")
    from superlora_cli.sweeping.plan import load_plan

    plan = load_plan(sweep)
    from superlora_cli.sweeping.folder import SweepFolder

    folder = SweepFolder(out or Path("runs") / "sweeps" / plan.name, plan)
    if dry_run:
        _dry_run(plan, folder.rows(), workers, as_json=as_json)
        return
    from superlora_cli.sweeping.conduct import conduct

    found = conduct(folder, stderr_console(), workers=workers, ray=ray, index=index, quiet=quiet or as_json)
    print_json(found) if as_json else _show(found)
    if found["status"] != "completed":
        raise typer.Exit(1)


def _show(found: dict[str, Any]) -> None:
    rows = [("runs", f"{found['completed']} of {found['runs']} done, {found['failed']} failed, {found['left']} left")]
    if found["impossible"]:
        rows.append(("left out", f"{found['impossible']} impossible combinations"))
    rows += [(row["id"], row["error"]) for row in found["errors"]]
    if best := found["best"]:
        figures = {
            name: best["metrics"][name] for name in (best["chosen_by"], "accuracy", "map") if name in best["metrics"]
        }
        words = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        rows.append(("best", f"{words}: {best['run']}"))
    rows.append(("results", found["results"]))
    print_pairs(found["out"], rows)


def _dry_run(plan: SweepPlan, rows: list[dict[str, Any]], workers: int | None, *, as_json: bool) -> None:
    from superlora_cli.sweeping.estimate import estimate

    time = estimate(plan, rows, workers or 1)
    ended = {row["id"]: row["status"] for row in rows}
    found = {
        "status": "dry-run",
        "sweep": str(plan.file),
        "runs": [
            {
                "index": None if run.impossible else plan.possible.index(run),
                "id": run.id,
                "recipe": run.name,
                "overrides": dict(run.overrides),
                "seed": run.recipe.seed,
                "steps": run.recipe.train.steps,
                "params": dict(run.params),
                "status": "impossible" if run.impossible else ended.get(run.id, "to do"),
                "error": run.impossible,
            }
            for run in plan.runs
        ],
        "possible": len(plan.possible),
        "time": time,
    }
    print_json(found) if as_json else _show_plan(found)
    if plan.impossible and not plan.skip_impossible:
        raise typer.Exit(UsageError.code)


def _show_plan(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from superlora_cli.sweeping.display import in_words

    table = Table("", "run", "", box=None, pad_edge=False, header_style="dim")
    for heading in ("parameters", "+ head", "steps"):
        table.add_column(heading, justify="right")
    for run in found["runs"]:
        params = run["params"]
        trained = params.get("adapter") or params.get("base")
        numbers = (trained, params.get("head"), run["steps"])
        shown = ["?" if number is None else f"{number:,}" for number in numbers]
        place = "" if run["index"] is None else str(run["index"])
        table.add_row(place, Text(run["id"]), Text(run["error"] or run["status"]), *shown)
    print_table(table)
    time = found["time"]
    length = "unknown" if time["seconds"] is None else f"about {in_words(time['seconds'])}"
    steps = "?" if time["steps"] is None else f"{time['steps']:,}"
    typer.echo(f"{found['possible']} runs, {steps} steps to go; time: {length} ({time['from']})")
