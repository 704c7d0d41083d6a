"""`superlora preview`: a recipe in, a picture of its training images, or its training texts, out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import loading, print_json, print_pairs


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (superlora ls recipes).")],
    overrides: options.Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The PNG file to write; default: preview.png. Texts are printed."),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Number of images (default: 32) or texts (4).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the picture.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the images or texts that a recipe trains on.

    These are the first of training, as the model sees them: images cropped, augmented and mixed, with labels or
    captions; texts as they are cut into tokens, with what is learned of them. No weights are read.
    """
    from superlora_cli.commands.previews import PREVIEWS
    from superlora_cli.errors import UsageError
    from superlora_cli.files import check_output
    from superlora_cli.recipe.load import load_recipe
    from superlora_cli.tasks import TASKS

    loaded = load_recipe(recipe, overrides or ())
    name = TASKS[loaded.task].previews
    if name is None:
        message = f"does not show the images of the task {loaded.task}"
        raise UsageError(message, where="superlora preview", hint="superlora train names the images that it leaves out")
    by = PREVIEWS[name]
    if by.file is None and out is not None:
        raise UsageError("texts are printed", where=f"--out {out}", hint="leave it out; --json prints all of it")
    place: dict[str, Any] = {}
    if by.file is not None:
        file = out or by.file
        place = {"out": file, "force": force}
        if file.suffix.lower() != ".png":
            raise UsageError("not a .png file", where=str(file), hint="--out preview.png")
        check_output(file, force=force, fills=False)
    with loading():
        preview = by.load()
    found = preview(loaded, count=count or by.count, **place)
    if as_json:
        print_json(found)
        return
    for title, rows in by.tables(found):
        print_pairs(title, rows)
