"""Merge an adapter into its text-to-image pipeline: a folder that `from_pretrained` loads.

Components that were trained without an adapter become part of such a folder, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superlora_cli.commands.merge_folder import changed, check_folder, merged, result, tolerance, write_folder
from superlora_cli.models.pipelines import INDEX, VAE, PipelineBase
from superlora_cli.models.quantising import precision
from superlora_cli.opening.build import build_from_file

IMAGES = 4  # whose noise the merged and the adapted denoiser predict, to compare them


def merge_pipeline(
    file: Path,
    out: Path,
    *,
    dtype: torch.dtype | None,
    scale: float,
    verify: bool,
    force: bool,
    allow_mismatch: bool,
) -> dict[str, Any]:
    """Write the pipeline of an adapter, with ΔW added to one of its components, to the folder `out`.

    Args:
        dtype: of the whole pipeline; default: as it is.
        scale: a number that ΔW is multiplied by.
        verify: compare the outputs of the component that was written with those of the adapted one.
        force: replace another pipeline's folder.

    Returns:
        As `commands.merge.merge`.

    Raises:
        UsageError: the output exists, or the pipeline cannot be loaded. RunError: the disk is full, or a weight is not
            finite. MismatchError: it is another base, or the verification failed.
    """
    check_folder(out, INDEX, force=force, what="pipeline")
    built = build_from_file(file, allow_mismatch=allow_mismatch)
    if built.adapter is not None:
        built.adapter.strength = scale
    base, tensors = built.base, changed(built)
    assert isinstance(base, PipelineBase)
    own = precision(base.model)
    pipeline = base.pipeline()
    adapted = _predictions(base, pipeline) if verify else None
    whole = merged(built)
    if whole is not base:
        assert isinstance(whole, PipelineBase)
        base, pipeline = whole, whole.pipeline()
    base.separate()
    if dtype is not None:
        pipeline.to(dtype)

    def written(place: Path) -> Tensor:
        for part in (base.component, *base.encoders):
            found = type(getattr(pipeline, part)).from_pretrained(place, subfolder=part)
            pipeline.register_modules(**{part: found.to(torch.float32)})
        return _predictions(base, pipeline)

    error = write_folder(
        out, lambda place: pipeline.save_pretrained(place, safe_serialization=True), force=force, adapted=adapted,
        outputs=written, tolerance=tolerance(built, own, dtype or own),
    )  # fmt: skip
    load = f"pipeline = diffusers.{base.kind}.from_pretrained({str(out)!r})"
    return result(built, out, error, tensors=tensors, dtype=dtype or own, over=f"{IMAGES} images", load=load)


@torch.no_grad()
def _predictions(base: PipelineBase, pipeline: Any) -> Tensor:
    """What the denoiser of a pipeline predicts of fixed noise, with random conditions or, if text encoders are adapted,
    those of a few words; what its autoencoder keeps of noise."""
    family, generator = base.family, torch.Generator().manual_seed(0)
    model = getattr(pipeline, base.component).eval()
    own = precision(model)
    if base.component == VAE:
        images = torch.randn(IMAGES, 3, base.image_size, base.image_size, generator=generator)
        kept: Tensor = model.decode(model.encode(images.to(own)).latent_dist.mode()).sample
        return kept.float()
    side = base.image_size // base.scale
    shape, conditions = family.example(model, (side, side), IMAGES)
    noisy = torch.randn(shape, generator=generator)
    times = family.noise(base.scheduler).times(torch.linspace(0.1, 0.9, IMAGES))
    if base.encoders:
        words = [f"{number} words" for number in range(IMAGES)]
        conditions = _cast(family.conditions(pipeline, words, (base.image_size, base.image_size)), own)
    else:
        conditions = _filled(conditions, family.shared, generator, own)
    return family.predict(model, noisy.to(own), times, conditions).float()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Conditions with their numbers in another precision."""
    if isinstance(value, Mapping):
        return {name: _cast(part, dtype) for name, part in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _filled(value: Any, shared: tuple[str, ...], generator: torch.Generator, dtype: torch.dtype, name: str = "") -> Any:
    """Conditions with random values; what has no dimension for images, such as positions, is zero, masks are one."""
    if isinstance(value, Mapping):
        return {key: _filled(part, shared, generator, dtype, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, shared, generator, dtype, name) for part in value]
    if not isinstance(value, Tensor):
        return value
    if name in shared:
        return torch.zeros_like(value)
    return torch.randn(value.shape, generator=generator).to(dtype) if value.is_floating_point() else value.fill_(1)
