"""Options shared by several commands."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from superlora_cli.errors import UsageError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
AllowBaseMismatch = Annotated[
    bool, typer.Option("--allow-base-mismatch", help="Accept a base whose target weights differ.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override: eval.batch_size=64")
]

# Where many runs are carried out.
Workers = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time; default: one per GPU, else one per CPU core.")
]
Ray = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: its address, auto, or local.")]

# How images are generated.
Sampler = Annotated[str, typer.Option(metavar="ddpm|ddim|dpm++", help="Sampler.")]
Steps = Annotated[int | None, typer.Option(help="Sampling steps; default: all for ddpm, 50 for ddim, 25 for dpm++.")]
Guidance = Annotated[
    float | None, typer.Option(help="Guidance weight w: (1+w)·conditional − w·unconditional; 0 for none; default 1.8.")
]
Seed = Annotated[int, typer.Option(help="Seed of the noise; each image has its own, from this and its index.")]

# From prompts.
Prompt = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="A prompt; may be given several times."),
]
Prompts = Annotated[Path | None, typer.Option(metavar="FILE", help="A text with one prompt per line.")]
Negative = Annotated[str | None, typer.Option(metavar="TEXT", help="Text-to-image: what the images should not show.")]


def refuse_others(given: Collection[str], task: str) -> None:
    """Refuse options of generating that only other tasks have.

    Raises:
        UsageError: one of them is given.
    """
    from superlora_cli.commands.generators import GENERATORS, generator_of

    own = generator_of(task).options
    for name in (name for each in GENERATORS.values() for name in each.options):
        if name in given and name not in own:
            where = "--" + {"prompts": "prompt", "prompts_file": "prompts"}.get(name, name).replace("_", "-")
            raise UsageError(f"does not apply to the task {task}", where=where, hint="leave it out")
