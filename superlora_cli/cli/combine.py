"""`superlora combine`: several adapters in, their weighted sum out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superlora_cli.cli.console import ENOUGH_ENERGY, loading, print_errors, print_json, print_pairs, writing
from superlora_cli.errors import UsageError

HEADS = {
    "mean": "the weighted mean of heads that were trained apart: evaluate it before use",
    "kept": "as it was trained",
    "left out": "left out: files of this form hold none",
}


def command(
    results: Annotated[list[Path], typer.Argument(metavar="RUN_OR_ADAPTER...", help="Run folders or adapter files.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Factor for each adapter, e.g. 0.5,0.5 (default: the mean), and for some weights, PATTERN=0.5."
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(help="adapter (a LoRA for eval and merge), or a format of export, such as delta.")
    ] = "adapter",
    rank: Annotated[int | None, typer.Option(help="Largest rank of a weight in the adapter.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Share of ‖ΔW‖² to keep; default: all if every ΔW has factors, else 0.99.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Add up adapters of any method on the same base.

    Of trained heads, the weighted mean is taken, or for formats without heads none; the output says which.
    """
    given = [] if weights is None else weights.split(",")
    numbers = [_number(part) for part in given if "=" not in part] or None
    parts = {name: _number(part) for name, _, part in (part.rpartition("=") for part in given if "=" in part)}
    with loading():
        from superlora_cli.commands.combine import combine

    done = combine(
        results, out, weights=numbers, parts=parts, to=to, rank=rank, energy=energy, force=force, tell=writing(out)
    )
    if as_json:
        print_json(done)
        return
    rows = [("output", f"{done['output']}  {done['bytes']:,} bytes")]
    if "params" in done:
        rows.append(("parameters", f"{done['params']:,}"))
    if done["head"]:
        rows.append(("head", HEADS[done["head"]]))
    print_pairs(to, [*rows, *(("note", note) for note in done.get("notes", ()))])
    if "weights" in done:
        enough = "" if done.get("notes") else f"{ENOUGH_ENERGY} keeps it below 5 %, "
        print_errors(done["weights"], done["error"], f"{enough}--to delta is exact")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"'{text}' is not a number", where="--weights", hint="one per adapter, e.g. 0.5,0.5") from None
