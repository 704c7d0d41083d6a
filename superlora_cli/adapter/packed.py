"""Packed weights: those of linear layers that libraries store in a few bits, in a form of their own.

ΔW cannot be added to such a weight. Its layer is adapted on its output instead, y = layer(x) + ΔW x, so all that is
asked of a library is that its layers are `nn.Linear`s which compute W x + b with gradients for x.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from superlora_cli.adapter.swapping import own_class
from superlora_cli.adapter.targets import Target

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # to which ΔW can be added
PLAIN = (nn.Parameter, Tensor)
UNITS = 1024  # vectors that a layer is asked about at once


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a layer, without its adapter, computes x Wᵀ + b by torch's own code."""
    return own_class(module).forward is nn.Linear.forward


def is_packed(module: nn.Module) -> bool:
    """Whether a layer is linear, and its weight is a tensor of a library's class, or no floating-point number for a
    library's layer."""
    weight = module._parameters.get("weight")
    if not isinstance(module, nn.Linear) or weight is None or is_lazy(weight) or hasattr(weight, "to_local"):
        return False
    return type(weight) not in PLAIN or (weight.dtype not in DTYPES and not is_plain_linear(module))


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """The shape of the weight that a layer computes with, also if it is packed."""
    if is_packed(module):
        return cast(int, module.out_features), cast(int, module.in_features)
    return tuple(cast(Tensor, module._parameters["weight"]).shape)


@torch.no_grad()
def weight_of(module: nn.Module) -> Tensor:
    """The weight that a layer computes with, (out, …) without its ΔW; a packed one is found by the layer's outputs for
    all unit vectors."""
    stored = cast(Tensor, module._parameters["weight"])
    if not is_packed(module):
        return stored.detach()
    twin: Any = copy.copy(module)  # without a bias; in training, where no library rearranges its weights
    twin.__dict__ |= {"_parameters": {**module._parameters, "bias": None}, "training": True}
    rows, columns = weight_shape(module)
    whole = torch.empty(
        (rows, columns), device=stored.device, dtype=stored.dtype if stored.is_floating_point() else torch.float32
    )
    for start in range(0, columns, UNITS):
        units = whole.new_zeros(min(UNITS, columns - start), columns)
        units.diagonal(start).fill_(1)
        whole[:, start : start + UNITS] = own_class(module).forward(twin, units).mT
    return whole


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, with what bitsandbytes' 8-bit layers hold beside their parameters (CB, the weight
    again, and SCB, its scales), which `nn.Module.to` leaves behind."""
    model.to(device)
    for module in model.modules():
        if is_packed(module):
            weight = cast(Tensor, module._parameters["weight"])
            for holder in (weight, getattr(module, "state", None)):
                if getattr(holder, "SCB", None) is not None:
                    holder.CB, holder.SCB = weight.data, holder.SCB.to(device)  # type: ignore[union-attr]


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a packed layer's weight is made of, as plain tensors by name, sorted."""
    state = {name: tensor for name, tensor in module.state_dict().items() if name != "bias"}
    for name in sorted(state):
        yield from _flat(name, state[name])


def _flat(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    if hasattr(tensor, "__tensor_flatten__"):
        for own in sorted(tensor.__tensor_flatten__()[0]):
            yield from _flat(f"{name}.{own}", getattr(tensor, own))
    else:
        yield name, tensor.detach().as_subclass(Tensor)


Read = Callable[[str, int, int], Tensor]  # (tensor name, first row, last + 1) → those rows of the base


@dataclass(frozen=True)
class Rows(Sequence[Tensor]):
    """The base's rows of every target, read when they are needed."""

    targets: Sequence[Target]
    read: Read

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Any) -> Any:
        target = self.targets[index]
        return self.read(f"{target.module}.weight", target.start, target.stop)


def rows_of(model: nn.Module, targets: Sequence[Target]) -> Rows:
    """The rows of every target in the weights that a model, without its adapter, computes with."""

    def read(name: str, start: int, stop: int) -> Tensor:
        return weight_of(model.get_submodule(name.rpartition(".")[0]))[start:stop]

    return Rows(targets, read)
