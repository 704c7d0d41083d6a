"""`superlora schema`: the keys of recipes, sweeps and search spaces, for editors and for people."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer


class Kind(StrEnum):
    """The files that have a schema."""

    recipe = "recipe"
    sweep = "sweep"
    space = "space"


def command(
    kind: Annotated[Kind, typer.Argument(help="Schema of which file.")] = Kind.recipe,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a readable table instead of JSON Schema.")
    ] = False,
) -> None:
    """Print the JSON Schema of a recipe, sweep or space.

    Editors use it to complete and check keys.
    """
    from superlora_cli.recipe.describe import json_schema, markdown_table
    from superlora_cli.sweeping.schema import Sweep
    from superlora_cli.tuning.schema import Space

    of = {Kind.recipe: None, Kind.sweep: Sweep, Kind.space: Space}[kind]
    typer.echo(markdown_table(of) if markdown else json.dumps(json_schema(of), indent=2, ensure_ascii=False))
