"""Bases that predict noise: `cfg_unet` in any size, the embedded one, and diffusers' UNet2DModel.

These models are called with (images, steps, labels), see `cfg_unet.ConditionalUNet.forward`, and have `classes`: the
number of classes, None if unconditional.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from superlora_cli.errors import UsageError
from superlora_cli.models.arguments import refuse_unknown
from superlora_cli.models.base import Base
from superlora_cli.models.cfg_unet import ConditionalUNet
from superlora_cli.models.embedded import ASSETS, EMBEDDED
from superlora_cli.models.loading import load_weights

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import ModelSection

HALF = (0.5, 0.5, 0.5)  # mean and standard deviation: [0, 1] becomes [−1, 1]
PATH = "pretrained_model_name_or_path"  # diffusers' name


def build_unet(section: ModelSection, *, image_size: int | None = None, weights: bool = True) -> Base:
    """Build the U-Net that a recipe's `model` section asks for; arguments as for `models.build.build`.

    Raises:
        UsageError: the model refuses the arguments or the image size, or has no pretrained weights but the recipe wants
            them.
    """
    embedded = EMBEDDED.get(section.name)
    arguments = {**(embedded.arguments if embedded else {}), **section.kwargs}
    file = Path(section.checkpoint) if section.checkpoint else None
    if file is None and embedded and section.pretrained:
        file = ASSETS / embedded.weights
    if section.name == "diffusers":
        from superlora_cli.models.diffusers_unet import create

        model: Any = create(arguments, weights=weights, pretrained=section.pretrained and file is None)
        call = "UNet2DModel.from_pretrained" if "path" in arguments else "UNet2DModel"
        arguments = {PATH if key == "path" else key: value for key, value in arguments.items()}
    else:
        call = "ConditionalUNet"
        model = _cfg_unet(section.name, arguments, meta=not weights)
        if weights and file is None and section.pretrained:
            hint = "model.checkpoint=FILE, or model.pretrained=false to train from scratch"
            raise UsageError(f"{section.name} has no pretrained weights", where="model.pretrained", hint=hint)
    if weights and file is not None:
        load_weights(model, file)
    size = image_size or model.image_size
    if size % model.multiple:
        message = f"the model cannot halve images of {size} × {size} often enough"
        raise UsageError(message, where="data.image_size", hint=f"use a multiple of {model.multiple}")
    return Base(model, call, arguments, size, HALF, HALF, task="diffusion", by_timm=False)


def _cfg_unet(name: str, arguments: Mapping[str, Any], *, meta: bool) -> ConditionalUNet:
    refuse_unknown(name, arguments, ConditionalUNet)
    try:
        with torch.device("meta" if meta else "cpu"):
            return ConditionalUNet(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} refuses its arguments: {error}", where="model.kwargs") from None
