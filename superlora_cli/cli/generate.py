"""`superlora generate`: a run of diffusion, text-to-image or language, an adapter or a base in, images or text out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import loading, print_json, print_pairs, stderr_console
from superlora_cli.errors import UsageError


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_ADAPTER",
            help="A run folder, an adapter file, or a base: a shipped one, transformers:…, diffusers:…, or its folder.",
        ),
    ],
    overrides: options.Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder for the images; of language, a JSON file (optional).")
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(help="Number of images: of all classes together, default 100; of each prompt, default 1."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="0,3,7", help="Classes, by name or number; default: all.")
    ] = None,
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    negative: options.Negative = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Text-to-image: size in pixels; default: that of training.")
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(metavar="0,0.5,1", help="Text-to-image: scales of the adapter, each a row of the grid."),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="ddpm|ddim|dpm++", help="Sampler, of images of classes; default: ddim.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Sampling steps; default: all for ddpm, 50 for ddim, 25 for dpm++; the pipeline's own."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance weight w: (1+w)·conditional − w·unconditional, default 1.8, 0 for none. "
            "Text-to-image: 1 + w, as pipelines count it."
        ),
    ] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat", help="Language: prompts are messages, in the model's chat template.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Language: the system's message before each; implies --chat.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Language: most tokens of a completion; default: that of the recipe.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Language: of drawing tokens; default: 0, always the likeliest.")
    ] = None,
    seed: options.Seed = 0,
    batch_size: Annotated[
        int | None, typer.Option(help="Images or texts generated at a time; it does not affect the images.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the generated images, or the file.")] = False,
    allow_base_mismatch: options.AllowBaseMismatch = False,
    as_json: options.AsJson = False,
) -> None:
    """Generate images, or continue prompts with a language model."""
    from superlora_cli.generation.folder import ImagesFolder
    from superlora_cli.opening.hub import PREFIX, local
    from superlora_cli.opening.results import base_named, resolve_result

    source = str(local(source)) if source.startswith(PREFIX) else source  # a Path would drop the ./ of a folder
    if base_named(source) is None and (
        Path(source).exists() or Path(source).name != source
    ):  # else the name of a shipped base
        resolve_result(Path(source))
    if out is not None and not out.is_file():
        ImagesFolder(out).check(force=force)  # before loading torch, which takes seconds
    with loading("torch and diffusers"):
        from superlora_cli.commands.generate import recipe_of_source
        from superlora_cli.commands.generators import generator_of

    given: dict[str, Any] = {"num": num, "classes": classes, "prompts": prompt, "prompts_file": prompts,
                             "negative": negative, "size": size, "scale": scale, "sampler": sampler, "steps": steps,
                             "guidance": guidance, "chat": chat, "system": system,
                             "max_tokens": max_tokens, "temperature": temperature, "seed": seed,
                             "batch_size": batch_size, "force": force,
                             "allow_mismatch": allow_base_mismatch}  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    task = recipe_of_source(source, overrides or ()).task
    options.refuse_others(given, task)
    by = generator_of(task)
    if out is None and by.to_folder:
        raise UsageError("missing", where="--out", hint="--out DIR, a folder for the images")
    told = {"tell": _tell} if out is None and not as_json else {}
    done = by.generate(source, out, stderr_console(), overrides or (), **given, **told)
    if as_json:
        print_json(done)
    elif out is not None:
        print_pairs(f"wrote {done.get('images', out)}", by.rows(done))


def _tell(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
