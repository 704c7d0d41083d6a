"""An adapter as one LoRA per adapted layer, for any file format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from superlora_cli.adapter.layers import by_module
from superlora_cli.adapter.lowrank import approximate, whole_error
from superlora_cli.errors import UsageError
from superlora_cli.formats.format import Options
from superlora_cli.formats.whole import Lora, loras
from superlora_cli.models.targets import part_named, parts_beside
from superlora_cli.opening.shapes_only import Stored
from superlora_cli.tasks import TASKS


@dataclass(frozen=True)
class Loras:
    """The LoRA of every module.

    Attributes:
        made: module name → its LoRA.
        errors: module name → relative error of its update; `error` is that of all together.
    """

    made: dict[str, Lora]
    errors: dict[str, float]
    error: float

    def about(self, adapter: Stored) -> dict[str, Any]:
        """What is reported about them: adapter_bytes, weights and error."""
        weights = [{"name": name, "rank": self.made[name].rank, "error": error} for name, error in self.errors.items()]
        return {"adapter_bytes": adapter.path.stat().st_size, "weights": weights, "error": self.error}


def as_loras(adapter: Stored, options: Options) -> Loras:
    """Every update as a product of two factors, exact if it is one and the limits allow it.

    Raises:
        UsageError: a LoRA would have no effect on a layer. RunError: ΔW is not finite.
    """
    found = [approximate(update, rank=options.rank, energy=options.energy) for update in adapter.updates()]
    made = loras(adapter.targets, found, adapter.modules)
    check_called(adapter)
    errors = {
        name: whole_error((found[index].norm, found[index].error) for index in indices)
        for name, indices in by_module(adapter.targets).items()
    }
    return Loras(made, errors, whole_error((one.norm, one.error) for one in found))


@torch.no_grad()
def check_called(adapter: Stored) -> None:
    """Run the base on shapes only, to check that each adapted layer is called: a LoRA acts on calls of its layer.

    Raises:
        UsageError: the model reads a layer's weight itself, as timm's BEiT does, so a LoRA would have no effect.
    """
    called: set[str] = set()
    beside = parts_beside(adapter.base.model)  # which the model itself does not call
    names = [name for name in by_module(adapter.targets) if part_named(name, beside) is None]
    hooks = [
        adapter.modules[name].register_forward_pre_hook(lambda module, inputs, name=name: called.add(name))
        for name in names
    ]
    size = adapter.base.image_size
    images, model = torch.empty(1, 3, size, size, device="meta"), adapter.base.model.eval()
    try:
        model(*TASKS[adapter.recipe.task].inputs(model, adapter.recipe, images))
    except Exception:  # a model may fail on shapes for any reason: then the check is skipped
        return
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if name not in called:
            message = "the model reads its weight without calling the layer, so a LoRA would have no effect"
            raise UsageError(message, where=name, hint="--to timm or --to delta")
