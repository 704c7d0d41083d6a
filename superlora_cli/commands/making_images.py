"""Make images and write each to a folder as it comes; whatever they are made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

import superlora_cli
from superlora_cli.errors import InterruptedRunError
from superlora_cli.generation.folder import ImagesFolder
from superlora_cli.generation.grid import png
from superlora_cli.recipe.schema import Recipe
from superlora_cli.training.processes import Processes, join


def make_images(
    folder: ImagesFolder,
    images: Mapping[str, Any],
    make: Callable[[Processes], Generator[Tensor, None, None]],
    grid: Callable[[Tensor], bytes],
    *,
    recipe: Recipe,
    about: Mapping[str, Any],
    chosen: Mapping[str, Any],
    fixed: Mapping[str, Any],
    reuse: bool,
) -> dict[str, Any]:
    """Write images, a grid of them and a manifest of all settings.

    Args:
        images: file name → what the image shows, in order.
        make: loads what it needs, and returns a generator of these images, uint8 (3, H, W).
        grid: a PNG of all images, uint8 (N, 3, H, W).
        about: what the manifest says of the model and its adapter, as `open_source` returns it.
        chosen: settings that are also reported.
        fixed: further settings that the images depend on.
        reuse: keep the images in the folder if they were made with the same settings.

    Returns:
        images (their folder), grid (the file), what was chosen, model, params (the adapter's), seconds.

    Raises:
        InterruptedRunError: by Ctrl-C; every image written is complete.
    """
    processes = join(recipe.train)
    made: list[Tensor] = []
    started = time.monotonic()
    try:
        environment = {"superlora": superlora_cli.__version__, "torch": torch.__version__, **processes.describe()}
        settings = {**about, **chosen, **fixed, "precision": recipe.train.precision, "environment": environment}
        kept = reuse and folder.holds(settings, images)
        if not kept:
            with closing(make(processes)) as coming:
                folder.begin(settings, images)
                for name, image in zip(images, coming, strict=True):
                    folder.write(name, png(image))
                    made.append(image)
            folder.finish(settings, images, grid(torch.stack(made)))
    except KeyboardInterrupt:
        hint = f"{len(made)} of {len(images)} images are written; --force starts over"
        raise InterruptedRunError("interrupted", where=str(folder.path), hint=hint) from None
    finally:
        processes.end()
    return {
        "images": str(folder.images),
        "grid": str(folder.grid),
        **chosen,
        "model": about["model"],
        "params": about["adapter"]["params"] if about["adapter"] else 0,
        "seconds": 0.0 if kept else time.monotonic() - started,
    }


def made_by(about: Mapping[str, Any]) -> str:
    """The model and its adapter, for a caption."""
    adapter = about["adapter"]
    return about["model"] + (f" + {adapter['file']} ({adapter['params']:,} parameters)" if adapter else "")
