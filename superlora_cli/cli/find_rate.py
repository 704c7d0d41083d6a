"""`superlora find-rate`: a recipe in, a learning rate out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import print_json, print_pairs, stderr_console


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (superlora ls recipes).")],
    overrides: options.Overrides = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot the loss against the learning rate (.svg, .png, .pdf).")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Suggest a learning rate for a recipe by a range test.

    Trains for at most 60 steps with a growing learning rate, until the loss blows up. Nothing of them is saved.
    """
    from superlora_cli.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    console = stderr_console()
    from superlora_cli.commands.find_rate import find_rate

    found = find_rate(loaded, console, plot=plot)
    if as_json:
        print_json(found)
        return
    command = ["superlora", "train", recipe, *(overrides or ()), f"train.optimizer.lr={found['rate']:g}"]
    rows = [("learning rate", f"{found['rate']:g}"), ("train with it", shlex.join(command))]
    rows += [("note", note) for note in found.get("notes", [])]
    if plot:
        rows.append(("picture", found["plot"]))
    print_pairs(recipe, rows)
