"""`superlora eval`: a run or an adapter in, metrics out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superlora_cli.cli.console import print_json, print_pairs


def command(
    result: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run's folder or an adapter file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override: eval.batch_size=64")
    ] = None,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Accept a base with other target weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Evaluate a run or an adapter file on the test split of its recipe's data."""
    from superlora_cli.tasks.evaluate import evaluate

    found = evaluate(result, overrides or (), allow_mismatch=allow_base_mismatch)
    if as_json:
        print_json(found)
        return
    rows = [
        ("base, data", f"{found['model']}, {found['data']} (test split, {found['n']:,} images)"),
        ("adapter parameters", f"{found['params']:,}"),
        *((name, f"{value:.4f}") for name, value in found["metrics"].items()),
    ]
    print_pairs(str(result), rows)
