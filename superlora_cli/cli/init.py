"""`superlora init`: a starting recipe for your own images or texts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from superlora_cli.cli.console import loading, print_json, print_pairs, stderr_console
from superlora_cli.data.known import TextFile
from superlora_cli.errors import UsageError
from superlora_cli.files import check_output
from superlora_cli.kinds import Kind, check_kind

if TYPE_CHECKING:
    from superlora_cli.commands.init import Start
    from superlora_cli.commands.init_texts import TextStart

IMAGES = "vit_base_patch16_224.orig_in21k"  # the model for images, if none is named


def command(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of images: one sub-folder per class, or train and test folders of such. Or texts: a .jsonl, "
            ".csv, .parquet or .txt file, or a folder of such."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="For images a timm model (superlora ls models), hf-hub:NAME or local-dir:FOLDER, by default "
            f"{IMAGES}; for texts transformers:NAME_OR_FOLDER, by default Qwen3-0.6B."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Image size in pixels; default: the model's, but at most 224 without a GPU."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe to write; default: <name of the data>.yaml.")] = None,
    pretrained: Annotated[bool, typer.Option(help="Start from pretrained weights.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the recipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Write a starting recipe for your images or texts."""
    if not (data.is_file() and data.suffix.lower() in TextFile.suffixes):  # else it is said what is wrong with it
        check_kind(data, "a folder of images, or texts", (Kind.IMAGES, Kind.FOLDER, Kind.TEXT, Kind.JSON))
    if not data.exists():
        hint = "give a folder with one sub-folder of images per class, or a file of texts"
        raise UsageError("no such folder or file", where=str(data), hint=hint)
    file = out or Path(f"{data.resolve().stem if data.is_file() else data.resolve().name}.yaml")
    check_output(file, force=force, fills=False)

    with loading():
        from superlora_cli.data.text_files import SUFFIXES, holds_texts

    if holds_texts(data):
        if image_size is not None:
            raise UsageError(f"{data} holds texts", where="--image-size", hint="leave it out")
        with loading("torch and transformers"):
            from superlora_cli.commands.init_texts import starting_text_recipe

        texts = starting_text_recipe(model, data, file, pretrained=pretrained)
        about = ("training texts", f"{texts.texts:,}, in sequences of {texts.length:,} tokens")
        check = ("look at it", f"superlora preview {shlex.quote(str(file))}")
        _write(file, texts, {"texts": texts.texts, "length": texts.length}, about, check, force=force, as_json=as_json)
        return
    if data.is_file():
        hint = f"a folder of images, or a file that ends in {', '.join(SUFFIXES)}"
        raise UsageError("is no file of texts", where=str(data), hint=hint)
    with loading():
        from superlora_cli.commands.init import starting_recipe

    start = starting_recipe(model or IMAGES, data, file, pretrained=pretrained, image_size=image_size)
    about = ("classes, training images", f"{start.classes:,}, {start.images:,}")
    check = ("check it", f"superlora train {shlex.quote(str(file))} --dry-run")
    _write(file, start, {"classes": start.classes, "images": start.images}, about, check, force=force, as_json=as_json)


def _write(
    file: Path,
    start: Start | TextStart,
    counts: dict[str, int],
    about: tuple[str, str],
    check: tuple[str, str],
    *,
    force: bool,
    as_json: bool,
) -> None:
    from superlora_cli.files import write_atomic

    write_atomic(file, start.text, force=force)
    for note in start.notes:
        stderr_console().print(note, markup=False, soft_wrap=True)
    if as_json:
        print_json({"recipe": str(file), **counts, "params": {"adapter": start.adapter, "head": start.head}})
        return
    parameters = ("parameters", f"{start.adapter:,} adapter, {start.head:,} head")
    print_pairs(f"wrote {file}", [about, parameters, check, ("train it", f"superlora train {shlex.quote(str(file))}")])
