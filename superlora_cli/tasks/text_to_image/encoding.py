"""Fills the cache with what training needs: the latents of its images, and the conditions of its captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from superlora_cli.data.augment import set_aside
from superlora_cli.data.captioned import CaptionedImages
from superlora_cli.data.images import cropped
from superlora_cli.models.pipelines import PipelineBase, in_one_line
from superlora_cli.progress import with_bar
from superlora_cli.tasks.text_to_image.cache import Cache
from superlora_cli.tasks.text_to_image.sizes import Size, nearest
from superlora_cli.training.processes import Processes

EMPTY = ""  # the caption of an image whose own is dropped


class Seen(NamedTuple):
    """An image as training sees it: its number, its size, and the keys of its latents and conditions."""

    number: int
    size: Size
    latents: str
    conditions: str


def seen(images: CaptionedImages, side: int, multiple: int, buckets: bool, guidance: float) -> list[Seen]:
    """All images of a split; with `buckets` in the size nearest to their own, else square."""
    found = []
    for index, content in enumerate(images.contents):
        size = nearest(images.size(index), side, multiple) if buckets else (side, side)
        found.append(Seen(index, size, f"image {content} {size}", conditions_key(images.texts[index], size, guidance)))
    return found


def conditions_key(text: str, size: Size, guidance: float) -> str:
    """The key of the conditions of a prompt."""
    return f"text {size} {guidance:g} {text}"


def fill(
    cache: Cache,
    base: PipelineBase,
    parts: Iterable[tuple[CaptionedImages, Sequence[Seen]]],
    processes: Processes,
    guidance: float,
) -> None:
    """Compute and store what is missing: every process its share. Autoencoder and text encoders are only loaded if
    something is, and leave memory afterwards. The global random numbers stay as they are."""
    images: dict[str, tuple[CaptionedImages, Seen]] = {}
    texts: dict[str, tuple[str, Size]] = {}
    for split, samples in parts:
        for sample in samples:
            images[sample.latents] = (split, sample)
            texts[sample.conditions] = (split.texts[sample.number], sample.size)
            texts[conditions_key(EMPTY, sample.size, guidance)] = (EMPTY, sample.size)
    new_images, new_texts = (
        [key for key in list(keys)[processes.index :: processes.count] if not cache.has(key)]
        for keys in (images, texts)
    )
    if not (new_images or new_texts):
        return
    device = processes.device
    with set_aside(), torch.no_grad(), in_one_line("cannot be run", base.folder):
        pipeline, family = base.pipeline(), base.family
        pipeline.to(device)  # with the denoiser: a pipeline works where its first part is
        vae: Any = pipeline.vae
        for key in with_bar(new_images, "encoding the images", total=len(new_images), size=lambda key: 1):
            split, sample = images[key]
            pixels = cropped(split.picture(sample.number)[0], sample.size)[None]
            cache.put(key, {"latents": family.latents(vae, pixels.to(device, vae.dtype))})
        for key in with_bar(new_texts, "encoding the captions", total=len(new_texts), size=lambda key: 1):
            text, size = texts[key]
            cache.put(key, family.conditions(pipeline, [text], size, guidance))
