"""`superlora preview`: a recipe in, a picture of its training images out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import loading, print_json, print_pairs


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (superlora ls recipes).")],
    overrides: options.Overrides = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The PNG file to write.")] = Path("preview.png"),
    count: Annotated[int, typer.Option(min=1, max=1000, help="Number of images.")] = 32,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the picture.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the images that a recipe trains on, with labels.

    These are the first images of training, as the model sees them: cropped, augmented and mixed. No weights are read.
    """
    from superlora_cli.errors import UsageError
    from superlora_cli.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if out.suffix.lower() != ".png":
        raise UsageError("not a .png file", where=str(out), hint="--out preview.png")
    if out.exists() and not force:
        raise UsageError("the file exists", where=str(out), hint="--force overwrites it; or choose another --out")
    with loading():
        from superlora_cli.commands.preview import preview

    found = preview(loaded, out, count=count)
    if as_json:
        print_json(found)
        return
    size = found["image_size"]
    print_pairs(recipe, [("images", f"{found['num']}, of {size} × {size} pixels"), ("picture", found["grid"])])
