"""`superlora preview`: a recipe in, a picture of its training images, or its training texts, out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import loading, print_json, print_pairs

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import Recipe


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

    These are the first of training, as the model sees them: images cropped, augmented and mixed, with labels; texts as
    they are cut into tokens, with what is learned of them. No weights are read.
    """
    from superlora_cli.errors import UsageError
    from superlora_cli.recipe.load import load_recipe
    from superlora_cli.tasks import TASKS

    loaded = load_recipe(recipe, overrides or ())
    if TASKS[loaded.task].reads:
        if out is not None:
            raise UsageError("texts are printed", where=f"--out {out}", hint="leave it out; --json prints all of it")
        _texts(loaded, count or 4, as_json=as_json)
        return
    out, count = out or Path("preview.png"), count or 32
    if out.suffix.lower() != ".png":
        raise UsageError("not a .png file", where=str(out), hint="--out preview.png")
    if out.exists() and not force:
        raise UsageError("the file exists", where=str(out), hint="--force overwrites it; or choose another --out")
    with loading():
        from superlora_cli.commands.preview import preview

    found = preview(loaded, out, count=count, force=force)
    if as_json:
        print_json(found)
        return
    size = found["image_size"]
    print_pairs(recipe, [("images", f"{found['num']}, of {size} × {size} pixels"), ("picture", found["grid"])])


def _texts(recipe: Recipe, count: int, *, as_json: bool) -> None:
    with loading("transformers"):
        from superlora_cli.commands.preview_texts import preview_texts

    found = preview_texts(recipe, count=count)
    if as_json:
        print_json(found)
        return
    for number, text in enumerate(found["texts"], 1):
        title = f"text {number}: {text['tokens']:,} tokens, {text['learned']:,} learned"
        rows = [("learned" if part["learned"] else "read", part["text"]) for part in text["parts"]]
        print_pairs(title, [*rows, *([("label", text["label"])] if "label" in text else [])])
    longest = ("tokens of a text", f"{found['length']:,} at most")
    print_pairs("all texts", [longest, *(("note", note) for note in found["notes"])])
