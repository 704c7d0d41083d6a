"""`superlora eval`: a run or an adapter in, metrics or predictions out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli.console import print_json, print_pairs
from superlora_cli.errors import UsageError

SHOWN = 12  # classes in the table, the worst


def command(
    result: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_ADAPTER", help="A run's folder or an adapter file; with --against, a folder of images."
        ),
    ],
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
    against: Annotated[
        str | None,
        typer.Option(
            metavar="DATA:SPLIT", help="Measure generated images against real ones: digits:test, or a folder of images."
        ),
    ] = None,
    extractor: Annotated[
        str | None, typer.Option(help="Of the features --against compares: inception (default) or digits.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of Inception; default: torch hub's cache.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the CSV file.")] = False,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Accept a base with other target weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Evaluate a run or an adapter file on the test split of its recipe's data, or predict the classes of images.

    With --against, measure how near the generated images in a folder are to real ones: FID, IS, KID, MSID, precision
    and recall.
    """
    if against is not None:
        for option, value in (("--predict", predict), ("--plot", plot), ("--out", out)):
            if value is not None:
                raise UsageError("does not go with --against", where=option, hint="leave out one of the two")
        _measure(result, against, overrides or [], extractor or "inception", weights, as_json)
        return
    for option, asked in (("--extractor", extractor), ("--weights", weights)):
        if asked is not None:
            raise UsageError("measures images against real ones", where=option, hint="--against digits:test")
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

    if result.is_dir() and not (result / "recipe.yaml").exists() and any(result.glob("*.png")):
        hint = "say what to measure them against: --against digits:test"
        raise UsageError("a folder of images, not a run", where=str(result), hint=hint)
    found = evaluate(result, overrides, allow_mismatch=allow, plot=plot)
    if as_json:
        print_json(found)
        return
    rows = [
        ("base, data", f"{found['model']}, {found['data']} (test split, {found['n']:,} images)"),
        ("adapter parameters", f"{found['params']:,}"),
        *((name, f"{value:.4f}") for name, value in found["metrics"].items()),
    ]
    classes = sorted(found.get("per_class", ()), key=lambda row: row["accuracy"])
    if len(classes) > SHOWN:
        rows.append(("classes", f"the {SHOWN} worst of {len(classes)}; --json has all"))
    for row in classes[:SHOWN]:
        mistaken = f", else mostly {row['taken_for']}" if row["taken_for"] is not None else ""
        rows.append((f"  {row['class']}", f"{row['accuracy']:.4f} of {row['n']:,} images{mistaken}"))
    if plot is not None:
        rows.append(("confusion matrix", str(plot)))
    print_pairs(str(result), rows)


def _measure(
    images: Path, against: str, overrides: list[str], extractor: str, weights: Path | None, as_json: bool
) -> None:
    from superlora_cli.tasks.measure import measure_folder

    found = measure_folder(images, against, overrides, extractor=extractor, weights=weights)
    print_json(found) if as_json else _show_measures(found)


def _show_measures(found: dict[str, Any]) -> None:
    values = {name: "not finite" if value is None else f"{value:.4g}" for name, value in found["metrics"].items()}
    settings, reference = found["settings"], found["reference"]
    rows = [
        ("images", f"{found['n']:,} against {reference['n']:,} of {reference['name']}"),
        ("extractor", f"{settings['extractor']}, layers {' and '.join(settings['layers'])}"),
        ("FID", values["fid"]),
        ("IS", f"{values['is']} ± {values['is_std']}; the reference's {values['is_reference']}"),
        ("|difference of IS|", f"{values['is_l1']}; over the pooled features {values['is_l1_pooled']}"),
        (f"KID, subsets of {settings['kid_subset_size']:,}", f"{values['kid']} ± {values['kid_std']}"),
        (
            f"MSID, {settings['msid_images']:,} images each",
            f"{values['msid']} ± {values['msid_std']}; noise floor {values['msid_floor']} ± {values['msid_floor_std']}",
        ),
        (f"precision, recall, k = {settings['k']}", f"{values['precision']}, {values['recall']}"),
    ]
    if "class_accuracy" in values:
        beside = (
            f"; the reference's {values['class_accuracy_reference']}" if "class_accuracy_reference" in values else ""
        )
        rows.append(("class accuracy", values["class_accuracy"] + beside))
    rows += [("note", note) for note in found["notes"]]
    print_pairs(found["images"], rows)


def _show_predictions(found: dict[str, Any]) -> None:
    rows = [("images", f"{found['n']:,}")]
    rows += [(f"  {name}", f"{count:,}") for name, count in found["classes"].items()]
    rows += [("cannot be read", f"{file['path']}: {file['cause']}") for file in found["unreadable"]]
    print_pairs(f"wrote {found['predictions']}", rows)
