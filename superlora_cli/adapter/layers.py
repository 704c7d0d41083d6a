"""Layers whose weight reads as W + ΔW: their class is swapped for a subclass in which `weight` is a property.

So also code that reads `layer.weight` itself sees the update, while `state_dict` keeps the base's names and bytes.
Swapping is all it takes to put an adapter on a model and to take it off, and copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.adapter.modes import only_operators
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.rows_linear import RowsLinear, as_rows, splice
from superlora_cli.adapter.shown import show
from superlora_cli.adapter.swapping import Swapped, own_class, swap, unswap
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Dense, Kronecker, LowRank, Update
from superlora_cli.errors import RunError


class Adapted(Swapped):
    """Mixed into a layer's class by `attach`: `weight` is the stored weight with ΔW added to its target rows."""

    _pieces: tuple[tuple[SuperLora, int], ...]  # the active adapter, and which of its targets are rows of this weight
    _parameters: dict[str, Tensor]

    @property
    def weight(self) -> Tensor:
        stored = self._parameters["weight"]
        if hasattr(stored, "to_local"):  # a shard (FSDP): it is whole while the layer runs
            return stored
        whole = splice(stored, [(start, update.dense()) for start, update in self.updates()])
        if torch.compiler.is_compiling() or only_operators():
            return whole
        ((owner, _), *_) = self._pieces
        return show(whole, owner.write_is_lost)

    def updates(self) -> list[tuple[int, Update]]:
        """(first row, update) of every target in this layer, by row."""
        ((owner, _), *_) = self._pieces
        current = owner.current()
        return [(owner.targets[i].start, current[i]) for owner, i in self._pieces]

    def _replicate_for_data_parallel(self) -> NoReturn:
        hint = "DistributedDataParallel, with one process for each device"
        raise RunError("an adapted model has no replicas", where="nn.DataParallel", hint=hint)


class AdaptedLinear(Adapted):
    """A plain `nn.Linear`: the gradient of rows that no target covers is never computed, and updates that are
    factored meet the activations without ΔW."""

    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        stored = self._parameters["weight"]
        if stored.requires_grad or input.is_nested or input.layout != torch.strided or only_operators():
            return functional.linear(input, self.weight, self.bias)
        found = self.updates()
        dense = [(start, update.delta) for start, update in found if isinstance(update, Dense)]
        low = [(start, update) for start, update in found if isinstance(update, LowRank)]
        weight = splice(stored, [(start, delta.detach()) for start, delta in dense])
        bias = self.bias
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = autocast(input, dtype), autocast(weight, dtype)
            bias = None if bias is None else autocast(bias, dtype)
        parts = [delta for _, delta in dense] + [update.left for _, update in low] + [update.right for _, update in low]
        starts = tuple(start for start, _ in dense), tuple(start for start, _ in low)
        if low or (dense and torch.is_grad_enabled()):
            parts = [part.to(weight.dtype) for part in parts]
            return cast(Tensor, RowsLinear.apply(input, weight, bias, starts, *parts))
        output = functional.linear(input, weight, bias)
        for start, update in found:
            if isinstance(update, Kronecker):
                made = update.to(weight.dtype)(as_rows(input))
                output.narrow(-1, start, update.rows).add_(made.view(*input.shape[:-1], update.rows))
        return output


def autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast does it: float64 stays."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a layer, without its adapter, computes x Wᵀ + b and nothing else."""
    return own_class(module).forward is nn.Linear.forward


def put_on(model: nn.Module, adapter: SuperLora) -> None:
    """Let the target layers of `adapter` read as W + ΔW, and the model hold its head and what it trains also; all are
    trainable then."""
    modules = dict(model.named_modules())
    for name, indices in layers_of(adapter.targets).items():
        module = modules[name]
        swap(module, AdaptedLinear if is_plain_linear(module) else Adapted)
        module.__dict__["_pieces"] = tuple((adapter, index) for index in indices)
    adapter.requires_grad_(True)
    _swap_beside(model, adapter, trainable=True)


def take_off(model: nn.Module, adapter: SuperLora, *, merge: bool = False) -> None:
    """Plain layers again; with `merge` ΔW is added to their weights and what is beside it stays in the model.

    Raises:
        RunError: merging would write NaN or Inf; nothing has been changed then.
    """
    modules = dict(model.named_modules())
    names = list(layers_of(adapter.targets))
    with torch.no_grad():
        merged = _merged(model, adapter) if merge else {}
        for name, weight in merged.items():
            if not torch.isfinite(weight).all():
                raise RunError("the merged weight is not finite", where=f"{name}.weight")
        for name in names:
            module = modules[name]
            unswap(module)
            del module.__dict__["_pieces"]
            if name in merged:
                cast(Tensor, module.weight).copy_(merged[name])
    adapter.requires_grad_(False)
    if not merge:
        _swap_beside(model, adapter, trainable=False)


def _merged(model: nn.Module, adapter: SuperLora) -> dict[str, Tensor]:
    """The weight W + ΔW of every target layer, from the factors as they are now."""
    deltas, found = adapter.compute(), {}
    for name, indices in by_module(adapter.targets).items():
        rows = [(adapter.targets[index].start, deltas[index]) for index in indices]
        found[name] = splice(stored_parameter(model, f"{name}.weight"), rows)
    return found


def by_module(targets: Sequence[Target]) -> dict[str, list[int]]:
    """The indices of the targets in each module, by row."""
    pieces: dict[str, list[int]] = {}
    for index, target in enumerate(targets):
        pieces.setdefault(target.module, []).append(index)
    return {name: sorted(indices, key=lambda index: targets[index].start) for name, indices in pieces.items()}


def layers_of(targets: Sequence[Target]) -> dict[str, list[int]]:
    """The same, with the modules that are tied to them."""
    own = by_module(targets)
    return own | {name: indices for indices in own.values() for name in targets[indices[0]].tied}


def stored_parameter(model: nn.Module, name: str) -> nn.Parameter:
    """A parameter of the model by name, also where an adapted layer shows another tensor under it."""
    module, _, own = name.rpartition(".")
    return cast(nn.Parameter, model.get_submodule(module)._parameters[own])


def _swap_beside(model: nn.Module, adapter: SuperLora, *, trainable: bool) -> None:
    """Exchange the model's head, and what is trained also, for the adapter's: no copy; the same again undoes it."""
    for own in (adapter.head, adapter.also):
        for name, kept in own.items():
            parameter = stored_parameter(model, name).requires_grad_(trainable)
            own[name], parameter.data, parameter.grad = parameter.data, kept.to(parameter), None
