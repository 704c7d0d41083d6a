"""How much the images of an exported file differ from those of the adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.errors import UsageError
from superlora_cli.formats.about import trigger_of
from superlora_cli.formats.foreign import read_foreign, updates_of
from superlora_cli.models.base import Base
from superlora_cli.models.families.naming import Rows
from superlora_cli.models.pipelines import PipelineBase
from superlora_cli.opening.base import open_base, without_quantising
from superlora_cli.opening.shapes_only import Stored
from superlora_cli.tasks.text_to_image.painting import painted
from superlora_cli.training.processes import join


def check_images(base: Base, num: int, to: str, *, exact: bool) -> None:
    """Refuse to compare images where there are none, or none that could differ.

    Raises:
        UsageError: names `--images`.
    """
    why = f"{num} images" if num < 1 else f"{to} is exact" if exact else None
    if why is None and not isinstance(base, PipelineBase):
        why = "the base is not a text-to-image pipeline"
    if why:
        raise UsageError(why, where="--images", hint="1 or more" if num < 1 else "leave it out")


def image_difference(adapter: Stored, file: Path, *, num: int, prompt: str | None) -> dict[str, Any]:
    """The mean difference of `num` images, by the pipeline with the adapter and with what is read from the file.

    Both have the same prompt and the same seeds, 0, 1, …

    Args:
        prompt: default: the words that all captions of the training had in common.

    Returns:
        num, prompt, difference: of the numbers of an image, in [0, 1].
    """
    base = open_base(without_quantising(adapter.recipe), adapter.stored)
    assert isinstance(base, PipelineBase)
    prompt = trigger_of(adapter.recipe.data.caption) if prompt is None else prompt
    own = {Rows(t.module, t.start, t.stop): d for t, d in zip(adapter.targets, adapter.deltas(), strict=True)}
    theirs = {rows: form.dense() for rows, form in updates_of(read_foreign(file), base).forms.items()}
    processes, size, made = join(adapter.recipe.train), (base.image_size, base.image_size), []
    try:
        pipeline = base.pipeline().to(processes.device)
        for deltas in (own, theirs):
            with added(base.model, deltas), processes.autocast():
                images = [painted(pipeline, [prompt], [seed], size) for seed in range(num)]
            made.append(torch.cat(images).float() / 255)
    finally:
        processes.end()
    return {"num": num, "prompt": prompt, "difference": float((made[0] - made[1]).abs().mean())}


@contextmanager
def added(model: nn.Module, deltas: Mapping[Rows, Tensor]) -> Iterator[None]:
    """Inside, rows of weights have ΔW added to them."""
    weights = {name: model.get_parameter(f"{name}.weight").detach() for name in {rows.module for rows in deltas}}
    before = {name: weight.clone() for name, weight in weights.items()}
    try:
        for rows, delta in deltas.items():
            part = weights[rows.module][rows.start : rows.stop]
            part += delta.to(part).reshape(part.shape)
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(before[name])
