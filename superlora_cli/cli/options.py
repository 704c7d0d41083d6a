"""Options that several commands have, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
AllowBaseMismatch = Annotated[
    bool, typer.Option("--allow-base-mismatch", help="Accept a base with other target weights.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override: eval.batch_size=64")
]

# Of images that are generated.
Sampler = Annotated[str, typer.Option(metavar="ddpm|ddim|dpm++", help="From noise to image.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler; default: ddpm all, ddim 50, dpm++ 25.")]
Guidance = Annotated[
    float | None, typer.Option(help="Weight w of (1+w)·conditional − w·unconditional; 0: none; default 1.8.")
]
Seed = Annotated[int, typer.Option(help="Seed; with the index, an image's own.")]
