"""`superlora generate`: a run of diffusion or text-to-image, an adapter or a base in, images out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import loading, print_json, print_pairs, stderr_console


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_ADAPTER", help="A run folder, an adapter file, or the name of a shipped base."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the images.")],
    overrides: options.Overrides = None,
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
    seed: options.Seed = 0,
    batch_size: Annotated[
        int | None, typer.Option(help="Images generated at a time; it does not affect the images.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the generated images in the folder.")] = False,
    allow_base_mismatch: options.AllowBaseMismatch = False,
    as_json: options.AsJson = False,
) -> None:
    """Generate images with a diffusion model, or from prompts."""
    from superlora_cli.generation.folder import ImagesFolder
    from superlora_cli.opening.hub import PREFIX, local
    from superlora_cli.opening.results import resolve_result

    source = str(local(source)) if source.startswith(PREFIX) else source  # a Path would drop the ./ of a folder
    if Path(source).exists() or Path(source).name != source:  # else the name of a shipped base
        resolve_result(Path(source))
    ImagesFolder(out).check(force=force)  # before loading torch, which takes seconds
    console = stderr_console()
    with loading("torch and diffusers"):
        from superlora_cli.commands.generate import generate, recipe_of
        from superlora_cli.commands.generate_prompted import generate_prompted
        from superlora_cli.tasks import TASKS

    given: dict[str, Any] = {"num": num, "classes": classes, "prompts": prompt, "prompts_file": prompts,
                             "negative": negative, "size": size, "scale": scale, "sampler": sampler, "steps": steps,
                             "guidance": guidance, "seed": seed, "batch_size": batch_size, "force": force,
                             "allow_mismatch": allow_base_mismatch}  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    task = recipe_of(source, overrides or ()).task
    prompted = TASKS[task].prompted
    options.refuse_others(given, task, prompted=prompted)
    done = (generate_prompted if prompted else generate)(source, out, console, overrides or (), **given)
    if as_json:
        print_json(done)
        return
    print_pairs(f"wrote {done['images']}", _rows_of_prompts(done) if prompted else _rows_of_classes(done))


def _rows_of_classes(done: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("images", f"{done['num']:,} of {len(done['classes'])} classes, {done['seconds']:.0f} s"),
        ("grid", done["grid"]),
        ("model", done["model"]),
        ("adapter parameters", f"{done['params']:,}"),
        ("sampler", f"{done['sampler']}, {done['steps']} steps, guidance {done['guidance']:g}, seed {done['seed']}"),
    ]


def _rows_of_prompts(done: dict[str, Any]) -> list[tuple[str, str]]:
    scales = "" if len(done["scales"]) == 1 else f" at {len(done['scales'])} scales"
    return [
        ("images", f"{done['num']:,} of {len(done['prompts'])} prompts{scales}, {done['seconds']:.0f} s"),
        ("grid", done["grid"]),
        ("model", done["model"]),
        ("adapter parameters", f"{done['params']:,}"),
        ("size, seed", f"{done['size'][0]} × {done['size'][1]}, {done['seed']}"),
    ]
