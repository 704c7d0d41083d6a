"""`superlora generate`: a diffusion run, adapter or base in, images out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    num: Annotated[int, typer.Option(help="Number of images, spread evenly over the classes.")] = 100,
    classes: Annotated[
        str | None, typer.Option(metavar="0,3,7", help="Classes, by name or number; default: all.")
    ] = None,
    sampler: options.Sampler = "ddim",
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Images generated at a time; it does not affect the images.")] = 64,
    force: Annotated[bool, typer.Option("--force", help="Replace the generated images in the folder.")] = False,
    allow_base_mismatch: options.AllowBaseMismatch = False,
    as_json: options.AsJson = False,
) -> None:
    """Generate images with a diffusion model and its adapter."""
    from superlora_cli.generation.folder import ImagesFolder
    from superlora_cli.opening.hub import local
    from superlora_cli.opening.results import resolve_result

    source = str(local(source))
    if Path(source).exists() or Path(source).name != source:  # else the name of a shipped base
        resolve_result(Path(source))
    ImagesFolder(out).check(force=force)  # before loading torch, which takes seconds
    console = stderr_console()
    with loading("torch and diffusers"):
        from superlora_cli.commands.generate import generate

    done = generate(
        source,
        out,
        console,
        overrides or (),
        num=num,
        classes=classes,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        seed=seed,
        batch_size=batch_size,
        force=force,
        allow_mismatch=allow_base_mismatch,
    )
    if as_json:
        print_json(done)
        return
    rows = [
        ("images", f"{done['num']:,} of {len(done['classes'])} classes, {done['seconds']:.0f} s"),
        ("grid", done["grid"]),
        ("model", done["model"]),
        ("adapter parameters", f"{done['params']:,}"),
        ("sampler", f"{done['sampler']}, {done['steps']} steps, guidance {done['guidance']:g}, seed {done['seed']}"),
    ]
    print_pairs(f"wrote {done['images']}", rows)
