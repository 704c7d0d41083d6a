"""`superlora validate`: is this recipe one?"""

from __future__ import annotations

from typing import Annotated

import typer

from superlora_cli.cli.console import print_json


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys to override.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Check a recipe and name everything that is wrong with it, with file and line."""
    from superlora_cli.recipe.load import find_recipe, load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if as_json:
        print_json({"valid": True, "recipe": loaded.to_dict()})
    else:
        typer.echo(f"{find_recipe(recipe)}: valid. superlora train {recipe} --dry-run counts what it would train.")
