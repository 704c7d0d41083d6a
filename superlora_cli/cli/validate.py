"""`superlora validate`: checks a recipe without training."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from superlora_cli.cli.console import print_json
from superlora_cli.cli.knobs import located


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys to override.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Check a recipe and list everything that is wrong.

    Checks every key, with file and line, and whether targets and knobs fit the model's weights. A model on the hub is
    not downloaded for this. Data that are not here are a warning.
    """
    from superlora_cli.analysis.trained import trained_params
    from superlora_cli.data.known import check_there
    from superlora_cli.errors import UsageError
    from superlora_cli.recipe.load import find_recipe, load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if ":" not in loaded.model.name:
        with located({}, recipe):
            trained_params(loaded)
    warnings = []
    try:
        check_there(loaded.data)
    except UsageError as error:
        warnings = [str(error)]
    if as_json:
        print_json({"valid": True, "recipe": loaded.to_dict(), **({"warnings": warnings} if warnings else {})})
    else:
        for line in warnings:
            typer.echo(f"warning: {line}")
        counts = f"superlora train {shlex.quote(recipe)} --dry-run counts what it would train"
        typer.echo(f"{find_recipe(recipe)}: valid. {counts}.")
