"""`superlora compress`: quantise a float32 adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superlora_cli.cli.console import loading, print_errors, print_json, print_pairs


def command(
    result: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run's folder or an adapter file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of its recipe to change, such as data.root.")
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of each number: 1 to 8, or 16.")] = 4,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .safetensors file to write.")] = ...,  # type: ignore[assignment]
    tune: Annotated[
        int, typer.Option(metavar="STEPS", min=0, help="Training steps after quantising, on the recipe's data.")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Quantise a finished adapter to a few bits per number.

    Reports the error of every ΔW, and the metrics before and after.
    """
    with loading():
        from superlora_cli.commands.compress import compress

    done = compress(result, out, overrides or [], bits=bits, tune=tune, force=force)
    if as_json:
        print_json(done)
        return
    numbers, metrics = done["numbers"], done["metrics"]
    rows = [
        ("output", f"{done['output']}  {done['bytes']:,} bytes"),
        ("numbers", f"{done['params']:,} of {numbers['bits']} bits, {numbers['bytes']:,} bytes"),
        *((name, f"{done['metrics_before'][name]:.4f} → {value:.4f}") for name, value in metrics.items()),
    ]
    print_pairs("compressed", rows)
    print_errors(done["weights"], done["error"], "more bits, or --tune 100")
