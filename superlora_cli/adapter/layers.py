"""Layers whose weight reads as W + ΔW: their class is swapped for a subclass in which `weight` is a property.

So also code that reads `layer.weight` itself sees the update, while `state_dict` keeps the base's names and bytes.
Swapping is all it takes to put an adapter on a model and to take it off, and copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.rows_linear import RowsLinear
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Dense, Kronecker, LowRank, Update
from superlora_cli.errors import RunError


class _Adapted:
    """Mixed into a layer's class by `attach`: `weight` is the stored weight with ΔW added to its target rows."""

    _pieces: tuple[tuple[SuperLora, int], ...]  # the active adapter, and which of its targets are rows of this weight
    _base_class: type[nn.Module]
    _parameters: dict[str, Tensor]

    @property
    def weight(self) -> Tensor:
        stored = self._parameters["weight"]
        if hasattr(stored, "to_local"):  # a shard (FSDP): it is whole while the layer runs
            return stored
        return splice(stored, [(start, update.dense()) for start, update in self.updates()])

    def updates(self) -> list[tuple[int, Update]]:
        """(first row, update) of every target in this layer, by row."""
        ((owner, _), *_) = self._pieces
        current = owner.current()
        return [(owner.targets[i].start, current[i]) for owner, i in self._pieces]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (_blank, (self._base_class,), self.__dict__)


class _AdaptedLinear(_Adapted):
    """A plain `nn.Linear`: the gradient of rows that no target covers is never computed, and updates that are
    factored meet the activations without ΔW."""

    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        found = self.updates()
        dense = [(start, update.delta) for start, update in found if isinstance(update, Dense)]
        low = [(start, update) for start, update in found if isinstance(update, LowRank)]
        weight = splice(self._parameters["weight"], [(start, delta.detach()) for start, delta in dense])
        bias = self.bias
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if not torch.is_grad_enabled():
            return functional.linear(input, weight, bias)
        parts = [delta for _, delta in dense] + [update.left for _, update in low] + [update.right for _, update in low]
        starts = tuple(start for start, _ in dense), tuple(start for start, _ in low)
        if parts:
            parts = [part.to(weight.dtype) for part in parts]
            return cast(Tensor, RowsLinear.apply(input, weight, bias, starts, *parts))
        output = functional.linear(input, weight, bias)
        for start, update in found:
            if isinstance(update, Kronecker):
                made = update.to(weight.dtype)(input.flatten(0, -2))
                output[..., start : start + update.rows] += made.view(*input.shape[:-1], -1)
        return output


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _adapted_class(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of `base` whose `weight` is W + ΔW; one per base class, so that types stay comparable."""
    if base not in _CLASSES:
        mixin = _AdaptedLinear if base.forward is nn.Linear.forward else _Adapted
        _CLASSES[base] = type(f"Adapted{base.__name__}", (mixin, base), {"_base_class": base})
    return _CLASSES[base]


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a layer, without its adapter, computes x Wᵀ + b and nothing else."""
    return getattr(module, "_base_class", type(module)).forward is nn.Linear.forward


def _blank(base: type[nn.Module]) -> nn.Module:
    adapted = _adapted_class(base)
    return adapted.__new__(adapted)


def splice(weight: Tensor, updates: Sequence[tuple[int, Tensor]], *, dtype: torch.dtype | None = None) -> Tensor:
    """`weight` with every update added to its rows, in float32 at least and cast once; other rows bit for bit.

    weight (out, ...), updates [(first row, (rows, ...))] in row order; `dtype` of the result, the weight's if None.
    """
    dtype = dtype or weight.dtype
    pieces, at = [], 0
    for start, delta in updates:
        rows = weight[start : start + len(delta)]
        pieces += [weight[at:start].to(dtype), (rows + delta).to(dtype)]
        at = start + len(delta)
    pieces = [piece for piece in (*pieces, weight[at:].to(dtype)) if len(piece)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def put_on(model: nn.Module, adapter: SuperLora) -> None:
    """Let the target layers of `adapter` read as W + ΔW, and the model hold its head and what it trains also; all are
    trainable then."""
    modules = dict(model.named_modules())
    for name, indices in by_module(adapter.targets).items():
        module = modules[name]
        module.__class__ = _adapted_class(type(module))
        module.__dict__["_pieces"] = tuple((adapter, index) for index in indices)
    adapter.requires_grad_(True)
    _swap_beside(model, adapter, trainable=True)


def take_off(model: nn.Module, adapter: SuperLora, *, merge: bool = False) -> None:
    """Plain layers again; with `merge` ΔW is added to their weights and what is beside it stays in the model.

    Raises:
        RunError: merging would write NaN or Inf; nothing has been changed then.
    """
    modules = dict(model.named_modules())
    names = list(by_module(adapter.targets))
    with torch.no_grad():
        merged = {name: cast(Tensor, modules[name].weight) for name in names} if merge else {}
        for name, weight in merged.items():
            if not torch.isfinite(weight).all():
                raise RunError("the merged weight is not finite", where=f"{name}.weight")
        for name in names:
            module = modules[name]
            module.__class__ = cast(Any, module)._base_class
            del module.__dict__["_pieces"]
            if name in merged:
                cast(Tensor, module.weight).copy_(merged[name])
    adapter.requires_grad_(False)
    adapter.forget()
    if not merge:
        _swap_beside(model, adapter, trainable=False)


def by_module(targets: Sequence[Target]) -> dict[str, list[int]]:
    """The indices of the targets in each module, by row."""
    pieces: dict[str, list[int]] = {}
    for index, target in enumerate(targets):
        pieces.setdefault(target.module, []).append(index)
    return {name: sorted(indices, key=lambda index: targets[index].start) for name, indices in pieces.items()}


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
