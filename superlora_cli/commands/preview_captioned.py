"""Images with captions as text-to-image trains on them: their sizes, how often they are seen, and what is left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from superlora_cli.data.captioned import CaptionedImages
from superlora_cli.data.images import cropped
from superlora_cli.errors import UsageError
from superlora_cli.files import write_atomic
from superlora_cli.generation.grid import titled_grid
from superlora_cli.models.pipelines import PipelineBase
from superlora_cli.opening.base import open_base
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks.text_to_image.batches import repeated
from superlora_cli.tasks.text_to_image.encoding import seen
from superlora_cli.tasks.text_to_image.notes import notes_on
from superlora_cli.tasks.text_to_image.reading import read_captioned
from superlora_cli.tasks.text_to_image.section import TextToImageSection

SIDE = 256  # pixels, the longest side of an image on the sheet


def preview_captioned(recipe: Recipe, out: Path, *, count: int, force: bool = False) -> dict[str, Any]:
    """Write the first `count` training images of `recipe`, cropped as training sees them, to the PNG file `out`.

    The model is built without weights.

    Returns:
        grid (the file), num, image_size; captions, of the images in the file; sizes, a dict for each with width,
        height, images and seen, which is their number in an epoch; left_out, a dict with path and cause for each
        image; and notes.

    Raises:
        UsageError: something is wrong with the model or the data, or the file cannot be written or, without `force`,
            exists.
    """
    if not out.parent.is_dir():
        raise UsageError("no such folder", where=str(out.parent), hint="create it first")
    base, settings = open_base(recipe, weights=False), recipe.section(TextToImageSection)
    assert isinstance(base, PipelineBase)
    splits = read_captioned(recipe, base.image_size)
    images = splits.named("train")
    assert isinstance(images, CaptionedImages)
    samples = seen(images, base.image_size, base.multiple, settings.buckets)
    often = Counter(sample.size for sample in repeated(samples, images.names, settings.repeats))
    first = samples[:count]
    sheet = [_small(cropped(images.picture(sample.number)[0], sample.size)) for sample in first]
    side = max(max(image.shape) for image in sheet)
    padded = [pad(image, (0, side - image.shape[2], 0, side - image.shape[1]), value=1.0) for image in sheet]
    pixels = ((torch.stack(padded) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    captions = [sample.caption for sample in first]
    write_atomic(out, titled_grid(pixels, captions), force=force)
    return {
        "grid": str(out),
        "num": len(first),
        "image_size": base.image_size,
        "captions": captions,
        "sizes": [
            {"width": size[0], "height": size[1], "images": number, "seen": often[size]}
            for size, number in sorted(Counter(sample.size for sample in samples).items())
        ],
        "left_out": [{"path": image.path, "cause": image.cause} for image in splits.unreadable],
        "notes": [*splits.notes, *notes_on(base, images, samples, settings.repeats)],
    }


def _small(image: Tensor) -> Tensor:
    """An image (3, H, W) whose longest side is at most `SIDE`."""
    factor = SIDE / max(image.shape)
    return image if factor >= 1 else interpolate(image[None], scale_factor=factor, mode="bilinear", antialias=True)[0]
