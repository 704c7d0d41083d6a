"""`superlora schema`: the recipe's keys, for editors and for people."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for people instead of JSON Schema.")] = False,
) -> None:
    """Print the JSON Schema of recipes; editors complete and check keys from it."""
    from superlora_cli.recipe.describe import json_schema, markdown_table

    typer.echo(markdown_table() if markdown else json.dumps(json_schema(), indent=2, ensure_ascii=False))
