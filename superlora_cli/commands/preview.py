"""Training images as the model sees them: cropped, augmented and mixed, with their labels."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superlora_cli.data.batches import Batch
from superlora_cli.data.source import Look
from superlora_cli.data.splits import DATA_SEED, load_splits
from superlora_cli.errors import UsageError
from superlora_cli.files import write_atomic
from superlora_cli.generation.grid import titled_grid
from superlora_cli.opening.base import open_base
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import image_task_of
from superlora_cli.tasks.images import outputs_of
from superlora_cli.tasks.reading import read_training, settled

SHOWN = 0.005  # smallest share of a class in a mixed image that is named


def preview(recipe: Recipe, out: Path, *, count: int, force: bool = False) -> dict[str, Any]:
    """Write the first `count` training images of `recipe`, as one process sees them, to the PNG file `out`.

    The model is built without weights, only to find out how it wants its images.

    Returns:
        grid (the file), num, image_size and labels, one per image.

    Raises:
        UsageError: something is wrong with the model or the data, or the file cannot be written or, without
            `force`, exists.
    """
    if not out.parent.is_dir():
        raise UsageError("no such folder", where=str(out.parent), hint="create it first")
    recipe = settled(recipe)
    base = open_base(recipe, weights=False)
    look = Look(base.image_size, base.mean, base.std)
    splits = load_splits(image_task_of(recipe).data(recipe), look, seed=DATA_SEED)
    found: list[Batch] = []
    with closing(read_training(recipe, splits, 0, count, outputs=outputs_of(base.model))) as batches:
        while sum(len(labels) for _, labels in found) < count:
            found.append(next(batches))
    images, labels = (torch.cat(parts)[:count] for parts in zip(*found, strict=True))
    titles = [_named(label, splits.class_names) for label in labels]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (look.mean, look.std))
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    write_atomic(out, titled_grid(pixels, titles), force=force)
    return {"grid": str(out), "num": len(titles), "image_size": look.size, "labels": titles}


def _named(label: Tensor, names: tuple[str, ...]) -> str:
    """A class, or several classes with their shares if images are mixed."""
    if not label.dim():
        return names[int(label)]
    shares = sorted(((share, index) for index, share in enumerate(label.tolist()) if share >= SHOWN), reverse=True)
    words = [names[index] if share > 1 - SHOWN else f"{names[index]} {share:.2f}" for share, index in shares]
    return ", ".join(words) or "no label"
