"""`superlora eval`: a run or an adapter in, metrics or predictions out."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import loading, print_json, print_pairs, stderr_console
from superlora_cli.errors import UsageError

SHOWN = 12  # classes in the table, the worst
SAMPLING = ("num", "sampler", "steps", "guidance", "seed")  # options of the images that --against makes


def command(
    context: typer.Context,
    result: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_ADAPTER", help="A run's folder or an adapter file; with --against, also a folder of images."
        ),
    ],
    overrides: options.Overrides = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the confusion matrix as a picture (.svg, .png, .pdf).")
    ] = None,
    predict: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Predict the classes of the images in a folder instead.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The CSV file of --predict; default: the folder's name.csv. "
            "With --against, the folder for a run's images; default: samples in the run's.",
        ),
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
    num: Annotated[int, typer.Option(help="Number of images that --against makes of a run.")] = 1000,
    sampler: options.Sampler = "ddim",
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the CSV file, or the images in --out.")] = False,
    allow_base_mismatch: options.AllowBaseMismatch = False,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a run, or predict the classes of images.

    A run or an adapter file is evaluated on the test split of its recipe's data.

    With --against, measure how near generated images are to real ones: FID, IS, KID, MSID, precision and recall. The
    images are those in a folder, or are made by a diffusion run.
    """
    given = {name: value for name, value in context.params.items() if _is_given(context, name)}
    if against is not None:
        _refuse(given, ("predict", "plot"), "does not go with --against", "leave out one of the two")
        by = {"extractor": extractor or "inception", "weights": weights}
        if _is_run(result):
            taken = {name: context.params[name] for name in SAMPLING}
            found = _measure_run(
                str(result), against, overrides, out=out, force=force, allow_mismatch=allow_base_mismatch, **by, **taken
            )
        else:
            _refuse(given, (*SAMPLING, "out", "force"), "the images are there already", "leave it out, or name a run")
            found = _measure(result, against, overrides, **by)
        print_json(found) if as_json else _show_measures(found)
        return
    _refuse(given, ("extractor", "weights", *SAMPLING), "measures images against real ones", "--against digits:test")
    if predict is None:
        _refuse(given, ("out",), "is the file of --predict", "--plot FILE draws a picture")
        _evaluate(result, overrides or [], plot, allow_base_mismatch, as_json)
        return
    from superlora_cli.opening.results import resolve_result

    resolve_result(result)
    if plot is not None:
        raise UsageError("predictions have no true classes to draw", where="--plot", hint="leave out one of the two")
    file = out or Path(f"{predict.resolve().name}.csv")
    if file.exists() and not force:
        raise UsageError("the file exists", where=str(file), hint="--force overwrites it, --out names another")

    with loading():
        from superlora_cli.commands.predict import predict as run

    found = run(result, predict, file, overrides or (), allow_mismatch=allow_base_mismatch)
    print_json(found) if as_json else _show_predictions(found)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse(given: Collection[str], names: Collection[str], message: str, hint: str) -> None:
    for name in names:
        if name in given:
            raise UsageError(message, where=f"--{name}", hint=hint)


def _is_run(result: Path) -> bool:
    """Whether images are to be made: of a run's folder, a file, or a shipped base."""
    if result.is_dir():
        return any((result / name).exists() for name in ("recipe.yaml", "adapter.safetensors", "model.safetensors"))
    return result.exists() or result.name == str(result)


def _evaluate(result: Path, overrides: list[str], plot: Path | None, allow: bool, as_json: bool) -> None:
    with loading():
        from superlora_cli.commands.evaluate import evaluate

    if result.is_dir() and not (result / "recipe.yaml").exists() and any(result.glob("*.png")):
        hint = "say what to measure them against: --against digits:test"
        raise UsageError("a folder of images, not a run", where=str(result), hint=hint)
    found = evaluate(result, overrides, allow_mismatch=allow, plot=plot)
    if as_json:
        print_json(found)
        return
    rows = [
        ("base, data", f"{found['model']}, {found['data']} (test split)"),
        ("adapter parameters", f"{found['params']:,}"),
        *((name, f"{value:.4f} ({found['n']:,} images)") for name, value in found["metrics"].items()),
    ]
    classes = sorted(found.get("per_class", ()), key=_quality)
    if len(classes) > SHOWN:
        rows.append(("classes", f"the {SHOWN} worst of {len(classes)}; --json has all"))
    for row in classes[:SHOWN]:
        what = "" if "accuracy" in row else " average precision"
        mistaken = f", else mostly {row['taken_for']}" if row.get("taken_for") is not None else ""
        rows.append((f"  {row['class']}", f"{_quality(row):.4f}{what} of {row['n']:,} images{mistaken}"))
    if plot is not None:
        rows.append(("confusion matrix", str(plot)))
    rows += [("note", note) for note in found["notes"]]
    print_pairs(str(result), rows)


def _quality(row: dict[str, Any]) -> float:
    """Of a class: its accuracy, or of one of several labels an image its average precision."""
    return float(row["accuracy"] if "accuracy" in row else row["average_precision"])


def _measure(images: Path, against: str, overrides: list[str] | None, **by: Any) -> dict[str, Any]:
    from superlora_cli.commands.measure import measure_folder

    return measure_folder(images, against, overrides or (), **by)


def _measure_run(source: str, against: str, overrides: list[str] | None, **settings: Any) -> dict[str, Any]:
    console = stderr_console()
    with loading("torch and diffusers"):
        from superlora_cli.commands.measure import measure_run

    return measure_run(source, against, console, overrides or (), **settings)


def _show_measures(found: dict[str, Any]) -> None:
    values = {name: "not finite" if value is None else f"{value:.4g}" for name, value in found["metrics"].items()}
    settings, reference = found["settings"], found["reference"]
    rows = [("images", f"{found['n']:,} against {reference['n']:,} of {reference['name']}")]
    if made := found.get("generated"):
        taken = f"{made['sampler']}, {made['steps']} steps, guidance {made['guidance']:g}, seed {made['seed']}"
        rows += [("made by", f"{made['model']}, {made['params']:,} adapter parameters; {taken}")]
    rows += [
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
