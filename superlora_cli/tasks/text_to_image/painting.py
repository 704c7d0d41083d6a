"""Images made from prompts by a pipeline's own call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from superlora_cli.errors import RunError
from superlora_cli.models.pipelines import in_one_line


@torch.no_grad()
def painted(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    size: tuple[int, int],
    where: str = "superlora generate",
    **call: Any,
) -> Tensor:
    """An image of each prompt, from the noise of its seed: uint8 (n, 3, H, W).

    Args:
        size: width and height in pixels.
        where: what asked for the images, for errors.
        call: further arguments of the pipeline; a `negative_prompt` is that of all images.

    Raises:
        RunError: the model gives NaN or Inf. UsageError: the pipeline refuses a setting.
    """
    if "negative_prompt" in call:
        call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
    call |= {"width": size[0], "height": size[1], "generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
    with in_one_line("the pipeline refuses this", where, hint=None):
        found = pipeline(prompt=list(prompts), output_type="pt", **call)
    images: Tensor = found.images.float().cpu()
    if not images.isfinite().all():
        hint = "train.precision=fp32, or smaller updates"
        raise RunError("the model gives NaN or Inf", where=where, hint=hint)
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
