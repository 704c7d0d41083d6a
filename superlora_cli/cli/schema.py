"""`superlora schema`: the keys of recipes and sweeps, for editors and for people."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer


class Kind(StrEnum):
    """The files that have a schema."""

    recipe = "recipe"
    sweep = "sweep"


def command(
    kind: Annotated[Kind, typer.Argument(help="Schema of which file.")] = Kind.recipe,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a readable table instead of JSON Schema.")
    ] = False,
) -> None:
    """Print the JSON Schema of recipes or of sweeps.

    Editors use it to complete and check keys.
    """
    from superlora_cli.recipe.describe import json_schema, markdown_table
    from superlora_cli.sweeping.schema import Sweep

    of = None if kind == Kind.recipe else Sweep
    typer.echo(markdown_table(of) if markdown else json.dumps(json_schema(of), indent=2, ensure_ascii=False))
