"""Running statistics of a frozen base stay as they are: adapters do not store them, and the base is to come back."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from superlora_cli.adapter.swapping import Swapped, swap, unswap


class _Still(Swapped):
    """Mixed into a normalisation's class: it computes as in evaluation, whatever mode the model is in."""

    _mode: bool  # that it was told
    training: bool

    def train(self, mode: bool = True) -> nn.Module:
        self.__dict__["_mode"] = mode
        assert isinstance(self, nn.Module)
        return nn.Module.train(self, False)


def hold_statistics(model: nn.Module) -> None:
    """Until `release_statistics`, normalisations with running statistics use those, and leave them alone."""
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            mode = module.training
            swap(module, _Still)
            module.train(mode)


def release_statistics(model: nn.Module) -> None:
    """Undo `hold_statistics`; the modules are in the mode that they were last told."""
    for module in model.modules():
        if isinstance(module, _Still):
            unswap(module)
            module.training = module.__dict__.pop("_mode")
