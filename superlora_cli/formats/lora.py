"""An adapter as one LoRA per adapted layer, for any file format."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from superlora_cli.adapter.layers import by_module
from superlora_cli.adapter.lowrank import approximate, whole_error
from superlora_cli.errors import UsageError
from superlora_cli.formats.format import Options
from superlora_cli.formats.whole import Lora, loras
from superlora_cli.models.targets import part_named, parts_beside
from superlora_cli.opening.build import Built
from superlora_cli.opening.shapes_only import Stored
from superlora_cli.tasks import task_of
from superlora_cli.training.memory import give_storages

UNCHECKED = "it could not be checked that the model calls every adapted layer, without which a LoRA has no effect"


@dataclass(frozen=True)
class Loras:
    """The LoRA of every module.

    Attributes:
        made: module name → its LoRA.
        errors: module name → relative error of its update; `error` is that of all together.
        notes: what could not be checked.
    """

    made: dict[str, Lora]
    errors: dict[str, float]
    error: float
    notes: tuple[str, ...] = ()

    def about(self, adapter: Stored) -> dict[str, Any]:
        """What is reported about them: adapter_bytes, weights and error; notes, if any."""
        weights = [{"name": name, "rank": self.made[name].rank, "error": error} for name, error in self.errors.items()]
        sizes = {"adapter_bytes": adapter.path.stat().st_size}
        return {**sizes, "weights": weights, "error": self.error, **noted(self.notes)}


def as_loras(adapter: Stored, options: Options) -> Loras:
    """Every update as a product of two factors, exact if it is one and the limits allow it.

    Raises:
        UsageError: a LoRA would have no effect on a layer. RunError: ΔW is not finite.
    """
    found = [approximate(update, rank=options.rank, energy=options.energy) for update in adapter.updates()]
    made = loras(adapter.targets, found, adapter.modules)
    notes = check_called(adapter)
    errors = {
        name: whole_error((found[index].norm, found[index].error) for index in indices)
        for name, indices in by_module(adapter.targets).items()
    }
    return Loras(made, errors, whole_error((one.norm, one.error) for one in found), notes)


def noted(notes: tuple[str, ...]) -> dict[str, Any]:
    """What is reported of notes: nothing without any."""
    return {"notes": list(notes)} if notes else {}


@torch.no_grad()
def check_called(adapter: Stored) -> tuple[str, ...]:
    """Run a batch of training through the base, on shapes only, to check that each adapted layer is called: a LoRA acts
    on calls of its layer.

    Returns:
        A note if the base cannot be run on shapes, else ().

    Raises:
        UsageError: the model reads a layer's weight itself, as timm's BEiT does, so a LoRA would have no effect.
    """
    model, beside = copy.deepcopy(adapter.base.model), parts_beside(adapter.base.model)
    names = [name for name in by_module(adapter.targets) if part_named(name, beside) is None]
    called: set[str] = set()
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.add(name))
    built = Built(adapter.recipe, replace(adapter.base, model=model), None, ("", ""))
    batch, loss = task_of(adapter.recipe).rehearsal(built)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            give_storages(model)
            model.eval()
            loss(batch())
    except (RuntimeError, TypeError, UsageError):  # it asks for the value of a number, or takes no such images
        return (UNCHECKED,)
    for name in names:
        if name not in called:
            message = "the model reads its weight without calling the layer, so a LoRA would have no effect"
            raise UsageError(message, where=name, hint="--to timm or --to delta")
    return ()
