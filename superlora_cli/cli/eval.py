"""`superlora eval`: a run or an adapter in, metrics or predictions out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli.console import print_json, print_pairs
from superlora_cli.errors import UsageError

SHOWN = 12  # classes in the table, the worst


def command(
    result: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run's folder or an adapter file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override: eval.batch_size=64")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the confusion matrix as a picture (.svg, .png, .pdf).")
    ] = None,
    predict: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Predict the classes of the images in a folder instead.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The CSV file of --predict; default: the folder's name.csv.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the CSV file.")] = False,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Accept a base with other target weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Evaluate a run or an adapter file on the test split of its recipe's data, or predict the classes of images."""
    if predict is None:
        if out is not None:
            raise UsageError("--out is the file of --predict", where="--out", hint="--plot FILE draws a picture")
        _evaluate(result, overrides or [], plot, allow_base_mismatch, as_json)
        return
    if plot is not None:
        raise UsageError("predictions have no true classes to draw", where="--plot", hint="leave out one of the two")
    file = out or Path(f"{predict.resolve().name}.csv")
    if file.exists() and not force:
        raise UsageError("the file exists", where=str(file), hint="--force overwrites it, --out names another")

    from superlora_cli.tasks.predict import predict as run

    found = run(result, predict, file, overrides or (), allow_mismatch=allow_base_mismatch)
    print_json(found) if as_json else _show_predictions(found)


def _evaluate(result: Path, overrides: list[str], plot: Path | None, allow: bool, as_json: bool) -> None:
    from superlora_cli.tasks.evaluate import evaluate

    found = evaluate(result, overrides, allow_mismatch=allow, plot=plot)
    if as_json:
        print_json(found)
        return
    rows = [
        ("base, data", f"{found['model']}, {found['data']} (test split, {found['n']:,} images)"),
        ("adapter parameters", f"{found['params']:,}"),
        *((name, f"{value:.4f}") for name, value in found["metrics"].items()),
    ]
    classes = sorted(found["per_class"], key=lambda row: row["accuracy"])
    if len(classes) > SHOWN:
        rows.append(("classes", f"the {SHOWN} worst of {len(classes)}; --json has all"))
    for row in classes[:SHOWN]:
        mistaken = f", else mostly {row['taken_for']}" if row["taken_for"] is not None else ""
        rows.append((f"  {row['class']}", f"{row['accuracy']:.4f} of {row['n']:,} images{mistaken}"))
    if plot is not None:
        rows.append(("confusion matrix", str(plot)))
    print_pairs(str(result), rows)


def _show_predictions(found: dict[str, Any]) -> None:
    rows = [("images", f"{found['n']:,}")]
    rows += [(f"  {name}", f"{count:,}") for name, count in found["classes"].items()]
    rows += [("cannot be read", f"{file['path']}: {file['cause']}") for file in found["unreadable"]]
    print_pairs(f"wrote {found['predictions']}", rows)
