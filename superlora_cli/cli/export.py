"""`superlora export`: an adapter in, a file for another library out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superlora_cli.cli.console import ENOUGH_ENERGY, loading, print_errors, print_json, print_pairs
from superlora_cli.formats.known import FORMATS

KNOWN = ", ".join(f"{name} ({form.description})" for name, form in FORMATS.items())
FOLDERS = ", ".join(name for name, form in FORMATS.items() if form.folder)


def command(
    result: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run folder or an adapter file.")],
    to: Annotated[str, typer.Option(help=f"One of {KNOWN}.")],
    out: Annotated[Path, typer.Option(help=f"The .safetensors file to write; a folder for {FOLDERS}.")],
    rank: Annotated[
        int | None, typer.Option(help="Largest rank of a weight in the LoRA formats; default: what --energy needs.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Share of ‖ΔW‖² to keep in the LoRA formats; default: all if ΔW has factors, else 0.99."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Write an adapter for timm, PEFT or diffusers, or ΔW.

    It is merged for timm, written as LoRA for PEFT and diffusers, or as the update itself.

    LoRA is exact where the update of each weight has low rank. Otherwise it is the nearest update of that rank, and
    the relative error of every weight is reported and stored.
    """
    with loading():
        from superlora_cli.commands.export import export

    done = export(result, out, to=to, rank=rank, energy=energy, force=force)
    if as_json:
        print_json(done)
        return
    size = f"  {done['bytes']:,} bytes" if "bytes" in done else ""
    rows = [("output", done["output"] + size), ("load it with", done["load"])]
    if "weights" in done:
        ranks = f"rank at most {max(row['rank'] for row in done['weights'])}, relative error {done['error']:.1%}"
        rows[1:1] = [("the adapter", f"{done['adapter_bytes']:,} bytes"), ("as LoRA", ranks)]
    print_pairs(to, rows)
    if "weights" in done:
        exact = " or ".join(name for name, form in FORMATS.items() if not form.lora)
        print_errors(done["weights"], done["error"], f"{ENOUGH_ENERGY} keeps it below 5 %, --to {exact} is exact")
