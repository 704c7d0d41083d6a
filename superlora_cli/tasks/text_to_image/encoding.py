"""Fills the cache with what training needs: the latents of its images, and the conditions of its captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from superlora_cli.data.augment import set_aside
from superlora_cli.data.captioned import CaptionedImages
from superlora_cli.data.images import cropped
from superlora_cli.errors import RunError, UsageError
from superlora_cli.models.families.family import Conditions, Family
from superlora_cli.models.pipelines import VAE, PipelineBase, in_one_line, placed
from superlora_cli.progress import with_bar
from superlora_cli.tasks.text_to_image.cache import Cache
from superlora_cli.tasks.text_to_image.objective import EMPTY
from superlora_cli.tasks.text_to_image.sizes import Size, nearest
from superlora_cli.training.processes import Processes


class Seen(NamedTuple):
    """An image as training sees it: its number, its size, its caption, the key of its latents, whether mirrored."""

    number: int
    size: Size
    caption: str
    latents: str
    flipped: bool = False


def seen(images: CaptionedImages, side: int, multiple: int, buckets: bool) -> list[Seen]:
    """All images of a split; with `buckets` in the size nearest to their own, else square.

    Args:
        side: root of the area of an image in pixels, a multiple of `multiple`, as width and height are.

    Raises:
        UsageError: it is no such multiple.
    """
    if side % multiple:
        message = f"the model cannot halve images of {side} × {side} often enough"
        raise UsageError(message, where="data.image_size", hint=f"use a multiple of {multiple}")
    sizes = (nearest(images.size(i), side, multiple) if buckets else (side, side) for i in range(len(images)))
    return [seen_in(images, index, size) for index, size in enumerate(sizes)]


def seen_in(images: CaptionedImages, index: int, size: Size) -> Seen:
    """One image, in a given size."""
    return Seen(index, size, images.texts[index], f"image {images.contents[index]} {size}")


def conditions_key(text: str, size: Size, guidance: float) -> str:
    """The key of the conditions of a caption, or of none."""
    return f"text {size} {guidance:g} {text}" if text else f"dropped {size} {guidance:g}"


def conditions_of(family: Family, pipeline: Any, text: str, size: Size, guidance: float) -> Conditions:
    """The denoiser's arguments for one caption; an empty one is none."""
    return family.conditions(pipeline, [text], size, guidance) if text else family.dropped(pipeline, size, guidance)


def fill(
    cache: Cache,
    base: PipelineBase,
    splits: Iterable[tuple[CaptionedImages, Sequence[Seen]]],
    processes: Processes,
    guidance: float,
    *,
    offload: bool,
) -> None:
    """Compute and store what is missing: every process its share. Autoencoder and text encoders are only loaded if
    something is, and leave memory afterwards. The global random numbers stay as they are.

    Captions are left out if text encoders are adapted: what becomes of them changes with every step.

    Raises:
        RunError: NaN, or Inf in latents, which are computed in float32; it is not stored.
    """
    images: dict[str, tuple[CaptionedImages, Seen]] = {}
    texts: dict[str, tuple[str, Size]] = {}
    for split, samples in splits:
        for sample in samples:
            images[sample.latents] = (split, sample)
            for text in () if base.encoders else (sample.caption, EMPTY):
                texts[conditions_key(text, sample.size, guidance)] = (text, sample.size)
    new_images, new_texts = (
        [key for key in list(keys)[processes.index :: processes.count] if not cache.has(key)]
        for keys in (images, texts)
    )
    if not (new_images or new_texts):
        return
    device = processes.device
    with set_aside(), torch.no_grad(), in_one_line("cannot be run", base.folder):
        family = base.family
        pipeline = placed(base.pipeline(), device, offload=offload)  # all of it: it works where its first part is
        vae: Any = pipeline.vae.float()  # in half precision, some overflow
        for key in with_bar(new_images, "encoding the images", total=len(new_images), size=lambda key: 1):
            split, sample = images[key]
            pixels = cropped(split.picture(sample.number)[0], sample.size)[None]
            pixels = pixels.flip(-1) if sample.flipped else pixels
            latents = family.latents(vae, pixels.to(device))
            if not latents.isfinite().all():
                message, hint = "the autoencoder makes NaN or Inf of it", f"check {base.folder / VAE}"
                raise RunError(message, where=split.names[sample.number], hint=hint)
            cache.put(key, {"latents": latents})
        for key in with_bar(new_texts, "encoding the captions", total=len(new_texts), size=lambda key: 1):
            text, size = texts[key]
            found = conditions_of(family, pipeline, text, size, guidance)
            if any(isinstance(part, torch.Tensor) and part.isnan().any() for part in tree_leaves(found)):
                message, hint = "the text encoders make NaN of this caption", "model.kwargs.torch_dtype: bfloat16"
                raise RunError(message, where=repr(text), hint=hint)
            cache.put(key, found)
        pipeline.remove_all_hooks()  # of offloading
    cache.make_room()


class Stored:
    """The denoiser's arguments for captions, from the cache."""

    def __init__(self, cache: Cache, base: PipelineBase, guidance: float) -> None:
        self.cache, self.base, self.guidance = cache, base, guidance

    def __call__(self, captions: Sequence[str], size: Size) -> Conditions:
        return self.base.family.together(
            [self.cache.get(conditions_key(text, size, self.guidance)) for text in captions]
        )


class Encoded:
    """The denoiser's arguments for captions, by the pipeline itself, differentiable in its text encoders."""

    def __init__(self, base: PipelineBase, device: torch.device, guidance: float) -> None:
        self.base, self.device, self.guidance = base, device, guidance

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline without its autoencoder, loaded when it is first needed."""
        found = self.base.pipeline()
        found.register_modules(vae=None)
        return found.to(self.device)

    def __call__(self, captions: Sequence[str], size: Size) -> Conditions:
        family = self.base.family
        if all(captions) or type(family).dropped is Family.dropped:  # which takes none for an empty one
            return family.conditions(self.pipeline, captions, size, self.guidance)
        alone = [conditions_of(family, self.pipeline, text, size, self.guidance) for text in captions]
        return family.together(alone)
