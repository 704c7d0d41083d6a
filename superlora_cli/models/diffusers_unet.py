"""diffusers' UNet2DModel as a base, called like our own: (images, steps, labels) → noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from superlora_cli.errors import UsageError
from superlora_cli.models.arguments import refuse_unknown


class DiffusersUNet(UNet2DModel):
    """The same modules with the same names.

    Attributes:
        classes: number of classes without the null class (label 0): `num_class_embeds` − 1; None if unconditional.
        image_size: S, the image size it is made for.
        multiple: image sizes must be multiples of this.
    """

    @property
    def classes(self) -> int | None:
        """See above."""
        known = self.config["num_class_embeds"]
        return None if known is None else known - 1

    @property
    def image_size(self) -> int:
        """See above."""
        size = self.config["sample_size"] or 32
        return int(size if isinstance(size, int) else size[0])

    @property
    def multiple(self) -> int:
        """See above."""
        return int(2 ** (len(self.config["block_out_channels"]) - 1))

    def forward(self, images: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        """As `cfg_unet.ConditionalUNet.forward`; an unconditional model ignores `labels`."""
        given = None if self.classes is None else labels
        result: Tensor = super().forward(images, steps, class_labels=given, return_dict=False)[0]
        return result


def create(arguments: Mapping[str, Any], *, weights: bool, pretrained: bool) -> DiffusersUNet:
    """A model with UNet2DModel's `arguments`, or the one that diffusers saved in the folder `arguments["path"]`.

    Args:
        weights: False for shapes only, on the meta device.
        pretrained: load the folder's weights, else initialise them.

    Raises:
        UsageError: diffusers refuses the arguments, there is no such folder, or the model is not for RGB images.
    """
    where, folder = "model.kwargs", arguments.get("path")
    device = torch.device("cpu" if weights else "meta")
    try:
        if folder is None:
            refuse_unknown("diffusers", arguments, UNet2DModel.__init__)
            if weights and pretrained:
                hint = "model.kwargs.path=FOLDER, model.checkpoint=FILE, or model.pretrained=false"
                raise UsageError("no pretrained weights given", where="model.pretrained", hint=hint)
            with device:
                model = DiffusersUNet(**arguments)
        else:
            where = "model.kwargs.path"
            if len(arguments) > 1:
                raise UsageError("a saved model has its own arguments", where=where, hint="give only the path")
            source = Path(folder) if (Path(folder) / "config.json").is_file() else Path(folder) / "unet"
            if not (source / "config.json").is_file():
                hint = "give a folder written by diffusers' save_pretrained"
                raise UsageError("holds no config.json", where=f"{where}={folder}", hint=hint)
            if weights and pretrained:
                model = DiffusersUNet.from_pretrained(source, low_cpu_mem_usage=False)
            else:
                with device:
                    model = DiffusersUNet.from_config(DiffusersUNet.load_config(source))
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise UsageError(f"diffusers cannot build this: {cause}", where=where) from None
    channels = model.config["in_channels"], model.config["out_channels"]
    if channels != (3, 3):
        message = f"{channels[0]} channels in, {channels[1]} out"
        raise UsageError(message, where=where, hint="use a model for RGB images")
    if model.config["class_embed_type"] is not None:
        raise UsageError("class_embed_type is not supported", where=where, hint="use num_class_embeds, or no classes")
    return model
