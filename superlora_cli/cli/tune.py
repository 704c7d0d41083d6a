"""`superlora tune`: a recipe and a budget in, the best recipe out."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import print_json, print_pairs, print_table, stderr_console
from superlora_cli.errors import UsageError

TRIALS = 40  # by default


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (superlora ls recipes).")],
    overrides: options.Overrides = None,
    budget: Annotated[
        int | None, typer.Option("--budget", metavar="N", min=1, help="At most N parameters of the adapter.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--bytes", metavar="N", min=1, help="At most N bytes of its numbers, of few bits each."),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help=f"Number of trials; default: {TRIALS}, or as --minutes allow."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="T", min=0.1, help="Begin no trials that would not end within T minutes.")
    ] = None,
    space: Annotated[Path | None, typer.Option(metavar="FILE", help="What to search: superlora schema space.")] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Seeds that the best settings are compared with.")] = 3,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the search; default: runs/tune/<recipe>-<budget>.")
    ] = None,
    workers: options.Workers = None,
    ray: options.Ray = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be tried; train nothing.")] = False,
    as_json: options.AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Find the best adapter of at most N parameters or bytes.

    Trials differ in the form of the adapter, its scale and its learning rate. They are compared on the validation
    data, poor ones are stopped early, and the best are trained with several seeds.

    The same command resumes a search that was stopped.
    """
    if (budget is None) == (size is None):
        hint = "e.g. --budget 1000 for numbers, --bytes 512 for bytes"
        raise UsageError("one of --budget and --bytes is needed", where="superlora tune", hint=hint)
    from superlora_cli.tuning.prepare import prepare

    prepared = prepare(
        recipe, overrides or (), budget or size or 0, in_bytes=size is not None, space=space, seeds=seeds,
        trials=trials if trials or minutes else TRIALS, minutes=minutes, out=out,
    )  # fmt: skip
    if dry_run:
        found = prepared.planned(workers or 1)
        print_json(found) if as_json else _show_plan(found)
        return
    found = prepared.search(stderr_console(), workers=workers, ray=ray, quiet=quiet or as_json)
    print_json(found) if as_json else _show(found)


def _show(found: dict[str, Any]) -> None:
    best, counts = found["best"], found["trials"]

    def means(one: dict[str, Any]) -> str:
        names = dict.fromkeys((found["metric"], found["metric"].removeprefix("val_")))
        return ", ".join(
            f"{name} {statistics.mean(one['metrics'][name]):.4g}" for name in names if name in one["metrics"]
        )

    rows = [
        ("trials", f"{counts['finished']} finished, {counts['stopped']} stopped early, {counts['failed']} failed"),
        ("best", f"{best['form']}: {best['params']:,} parameters, {best['bytes']:,} bytes"),
        (f"mean of {len(best['seeds'])} seeds", means(best)),
    ]
    rows += [
        (f"trial {one['trial']}", f"{one['form']}: {means(one)}")
        for one in found["finalists"]
        if one is not best and one["trial"] != best["trial"]
    ]
    if found["importances"]:
        rows.append(("what mattered", ", ".join(f"{name} {share:.0%}" for name, share in found["importances"].items())))
    rows += [("recipe", found["recipe"]), ("run", best["run"]), ("picture", found["plot"])]
    print_pairs(found["out"], rows)


def _show_plan(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from superlora_cli.sweeping.display import in_words

    table = Table("form", box=None, pad_edge=False, header_style="dim")
    for heading in ("parameters", "bytes"):
        table.add_column(heading, justify="right")
    for row in found["forms"]:
        sizes = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high in (row["params"], row["bytes"])]
        table.add_row(Text(row["form"]), *sizes)
    print_table(table)
    for key, among in found["ranges"].items():
        shown = ", ".join(map(str, among)) if isinstance(among, list) else f"{among['low']:.3g} to {among['high']:.3g}"
        typer.echo(f"{key}: {shown}")
    for one in found["left_out"]:
        typer.echo(f"left out: {one['form']}: {one['why']}")
    time = found["time"]
    length = "unknown" if time["seconds"] is None else f"at most about {in_words(time['seconds'])}"
    trials = "as many trials as there is time for" if found["trials"] is None else f"{found['trials']} trials"
    typer.echo(f"{trials}, {found['steps']:,} steps each unless stopped early; time: {length} ({time['from']})")
