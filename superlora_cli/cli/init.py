"""`superlora init`: a starting recipe for your own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superlora_cli.cli.console import loading, print_json, print_pairs
from superlora_cli.errors import UsageError
from superlora_cli.kinds import check_kind


def command(
    data: Annotated[
        Path, typer.Option(help="Folder of images: one sub-folder per class, or train and test folders of such.")
    ],
    model: Annotated[
        str, typer.Option(help="A timm model (superlora ls models), or hf-hub:NAME, or local-dir:FOLDER.")
    ] = "vit_base_patch16_224.orig_in21k",
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Image size in pixels; default: the model's, but at most 224 without a GPU."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe to write; default: <folder>.yaml.")] = None,
    pretrained: Annotated[bool, typer.Option(help="Start from pretrained weights.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the recipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Write a starting recipe for a folder of images."""
    if not data.is_dir():
        check_kind(data, "a folder of images", ())
        raise UsageError(
            "no such folder", where=str(data), hint="give a folder with one sub-folder of images per class"
        )
    file = out or Path(f"{data.resolve().name}.yaml")
    if file.exists() and not force:
        raise UsageError("the file exists", where=str(file), hint="--force overwrites it; or choose another --out")
    if not file.parent.is_dir():
        raise UsageError("no such folder", where=str(file.parent), hint="create it first")

    from superlora_cli.files import write_atomic

    with loading():
        from superlora_cli.commands.init import starting_recipe

    start = starting_recipe(model, data, file, pretrained=pretrained, image_size=image_size)
    write_atomic(file, start.text)
    if as_json:
        params = {"adapter": start.adapter, "head": start.head}
        print_json({"recipe": str(file), "classes": start.classes, "images": start.images, "params": params})
        return
    rows = [
        ("classes, training images", f"{start.classes:,}, {start.images:,}"),
        ("parameters", f"{start.adapter:,} adapter, {start.head:,} head"),
        ("check it", f"superlora train {file} --dry-run"),
        ("train it", f"superlora train {file}"),
    ]
    print_pairs(f"wrote {file}", rows)
