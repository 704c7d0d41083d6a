"""Keep the running statistics of a frozen base unchanged: adapters do not store them, and detaching must restore it."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from superlora_cli.adapter.swapping import Swapped, swap, unswap


class _Still(Swapped):
    """Mixed into the class of a normalisation layer: it stays in evaluation mode, whatever the mode of the model."""

    _mode: bool  # the mode that was requested
    training: bool

    def train(self, mode: bool = True) -> nn.Module:
        self.__dict__["_mode"] = mode
        assert isinstance(self, nn.Module)
        return nn.Module.train(self, False)


def hold_statistics(model: nn.Module) -> None:
    """Until `release_statistics`, normalisation layers use their running statistics and do not update them."""
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            mode = module.training
            swap(module, _Still)
            module.train(mode)


def release_statistics(model: nn.Module) -> None:
    """Undo `hold_statistics`; the modules get the mode that was last requested."""
    for module in model.modules():
        if isinstance(module, _Still):
            unswap(module)
            module.training = module.__dict__.pop("_mode")
