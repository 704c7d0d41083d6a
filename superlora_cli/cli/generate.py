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
        typer.Argument(metavar="RUN_OR_ADAPTER", help="A run folder, an adapter file, or the name of a shipped base."),
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
    from superlora_cli.opening.results import resolve_result

    source = str(local(source)) if source.startswith(PREFIX) else source  # a Path would drop the ./ of a folder
    if Path(source).exists() or Path(source).name != source:  # else the name of a shipped base
        resolve_result(Path(source))
    if out is not None and not out.is_file():
        ImagesFolder(out).check(force=force)  # before loading torch, which takes seconds
    with loading("torch and diffusers"):
        from superlora_cli.commands.generate import generate, recipe_of_source
        from superlora_cli.commands.generate_prompted import generate_prompted
        from superlora_cli.commands.generate_text import generate_text
        from superlora_cli.tasks import TASKS

    given: dict[str, Any] = {"num": num, "classes": classes, "prompts": prompt, "prompts_file": prompts,
                             "negative": negative, "size": size, "scale": scale, "sampler": sampler, "steps": steps,
                             "guidance": guidance, "max_tokens": max_tokens, "temperature": temperature, "seed": seed,
                             "batch_size": batch_size, "force": force,
                             "allow_mismatch": allow_base_mismatch}  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    task = recipe_of_source(source, overrides or ()).task
    prompted, reads = TASKS[task].prompted, TASKS[task].reads
    options.refuse_others(given, task)
    if reads:
        streams = not as_json and out is None
        found = generate_text(source, overrides or (), out=out, **given, as_it_comes=_tell if streams else None)
        _show_texts(found, as_json=as_json, out=out)
        return
    if out is None:
        raise UsageError("missing", where="--out", hint="--out DIR, a folder for the images")
    words = overrides or ()
    if prompted:
        done = generate_prompted(source, out, words, **given)
    else:
        done = generate(source, out, stderr_console(), words, **given)
    if as_json:
        print_json(done)
        return
    print_pairs(f"wrote {done['images']}", _rows_of_prompts(done) if prompted else _rows_of_classes(done))


def _tell(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _show_texts(found: dict[str, Any], *, as_json: bool, out: Path | None) -> None:
    """Print completions: as JSON, or each after its prompt; a single one has been told as it came."""
    completions = found["completions"]
    if as_json:
        print_json(found)
    elif out is not None:
        print_pairs(f"wrote {out}", [("completions", f"{len(completions):,}")])
    elif len(completions) == 1:
        _tell("\n")
    else:
        _tell("".join(f"{each['prompt']}{each['text']}\n" for each in completions))


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
    prompts = "1 prompt" if len(done["prompts"]) == 1 else f"{len(done['prompts'])} prompts"
    return [
        ("images", f"{done['num']:,} of {prompts}{scales}, {done['seconds']:.0f} s"),
        ("grid", done["grid"]),
        ("model", done["model"]),
        ("adapter parameters", f"{done['params']:,}"),
        ("size, seed", f"{done['size'][0]} × {done['size'][1]}, {done['seed']}"),
    ]
