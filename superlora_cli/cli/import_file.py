"""`superlora import`: an adapter of another program in, a superlora adapter out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli import knobs
from superlora_cli.cli.console import loading, print_errors, print_json, print_pairs


@knobs.takes_knobs
def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file, or the folder of a PEFT adapter.")],
    base: Annotated[str, typer.Option(metavar="RECIPE|MODEL", help="The model that it is for: its name, or a recipe.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The adapter file to write.")],
    partial: Annotated[bool, typer.Option("--partial", help="Leave out what fits no weight of the model.")] = False,
    steps: Annotated[int, typer.Option(min=0, help="At most this many steps of fitting after the closed form.")] = 200,
    seed: Annotated[int | None, typer.Option(help="Seed of the fixed projection.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    **options: Any,
) -> None:
    """Make an adapter of a file of another program.

    Without knobs, it is exactly the file's update: as LoRA, LoHa or LoKr where it is one throughout, else in full size.
    With knobs, such as --method lora --rank 8, an adapter is fitted to it, and the error of every weight is reported.
    """
    given = knobs.given(**options, seed=seed)
    with loading():
        from superlora_cli.commands.import_file import import_file

    with knobs.located(given, None):
        done = import_file(file, out, base=base, knobs=given, steps=steps, partial=partial, force=force)
    if as_json:
        print_json(done)
        return
    rows = [
        ("output", f"{done['output']}  {done['bytes']:,} bytes"),
        ("parameters", f"{done['params']:,}" + (f", {done['method']}" if done["method"] else "")),
        *((f"left out: {key}", why) for key, why in done["left_out"].items()),
    ]
    print_pairs("imported", rows)
    if done["error"]:
        print_errors(done["weights"], done["error"], "a higher rank or another method may fit better")
