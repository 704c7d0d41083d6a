"""Layers whose weight reads as W + ΔW: their class is swapped for a subclass in which `weight` is a property.

Code that reads `layer.weight` directly sees the update too, while `state_dict` keeps the base's names and bytes. Only a
packed weight stays what it is: there the update is added to the layer's output. Swapping is all that putting an adapter
on a model or taking it off needs; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.adapter.hidden import hide
from superlora_cli.adapter.modes import only_operators
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.packed import is_packed, is_plain_linear, weight_of
from superlora_cli.adapter.rows_linear import RowsLinear, as_rows, splice
from superlora_cli.adapter.shown import show
from superlora_cli.adapter.swapping import Swapped, swap, unswap
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Dense, Kronecker, LowRank, Update
from superlora_cli.errors import RunError, UsageError


class Updated(Swapped):
    """Mixed into a layer's class by `attach`."""

    _pieces: tuple[tuple[SuperLora, int], ...]  # the active adapter, and the indices of its targets in this weight
    _parameters: dict[str, Tensor]

    def updates(self) -> list[tuple[int, Update]]:
        """(first row, update) of every target in this layer, by row."""
        ((owner, _), *_) = self._pieces
        current = owner.current()
        return [(owner.targets[i].start, current[i]) for owner, i in self._pieces]

    def with_updates(self, output: Tensor, input: Tensor) -> Tensor:
        """A layer's own output (..., out), with what the update of every target makes of its input added."""
        rows = as_rows(input).to(output.dtype)
        for start, update in self.updates():
            made = update.to(output.dtype)(rows)  # (n, rows of the target)
            after = output.shape[-1] - start - made.shape[-1]
            whole = functional.pad(made, (start, after)) if start or after else made  # which `pad` would copy
            output = output + whole.view(output.shape)
        return output

    def _replicate_for_data_parallel(self) -> NoReturn:
        hint = "use DistributedDataParallel, with one process per device"
        raise RunError("an adapted model cannot be replicated", where="nn.DataParallel", hint=hint)


class Adapted(Updated):
    """`weight` is the stored weight with ΔW added to its target rows."""

    @property
    def weight(self) -> Tensor:
        stored = self._parameters["weight"]
        if hasattr(stored, "to_local"):  # a shard (FSDP): the weight is whole while the layer runs
            return stored
        ((owner, _), *_) = self._pieces
        if owner.config.activates:
            return hide(stored, owner.config.activation)
        whole = splice(stored, [(start, update.dense()) for start, update in self.updates()])
        if torch.compiler.is_compiling() or only_operators():
            return whole
        return show(whole, owner.write_is_lost)


class AdaptedLinear(Adapted):
    """A plain `nn.Linear`: no gradient is computed for rows outside the targets, and factored updates are applied to
    the activations without ΔW."""

    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        stored = self._parameters["weight"]
        ((owner, _), *_) = self._pieces
        if owner.config.activates:
            return self.with_updates(functional.linear(input, stored, self.bias), input)
        if stored.requires_grad or input.is_nested or input.layout != torch.strided or only_operators():
            return functional.linear(input, self.weight, self.bias)
        found = self.updates()
        dense = [(start, update.delta) for start, update in found if isinstance(update, Dense)]
        low = [(start, update) for start, update in found if isinstance(update, LowRank)]
        weight = splice(stored, [(start, delta.detach()) for start, delta in dense]) if dense else stored
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
                # `output[...] += …` also assigns the slice back, which torch 2.11 refuses if it is the whole of a leaf
                output.narrow(-1, start, update.rows).add_(made.view(*input.shape[:-1], update.rows))
        return output


def autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast as autocast does: float64 stays."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


class AdaptedOutput(Updated):
    """A packed layer: its own output, with ΔW x added to that of the target rows."""

    def forward(self, input: Tensor) -> Tensor:
        return self.with_updates(super().forward(input), input)  # type: ignore[misc]


def put_on(model: nn.Module, adapter: SuperLora) -> None:
    """Make the target layers of `adapter` read as W + ΔW, and put its head and `also` tensors into the model; all are
    trainable then."""
    modules = dict(model.named_modules())
    for name, indices in layers_of(adapter.targets).items():
        module = modules[name]
        plain = AdaptedLinear if is_plain_linear(module) else Adapted
        swap(module, AdaptedOutput if is_packed(module) else plain)
        module.__dict__["_pieces"] = tuple((adapter, index) for index in indices)
    adapter.requires_grad_(True)
    adapter.watch()
    _swap_beside(model, adapter, trainable=True)


def take_off(model: nn.Module, adapter: SuperLora, *, merge: bool = False) -> None:
    """Make the layers plain again; with `merge`, add ΔW to their weights and keep head and `also` tensors in the model.

    Raises:
        UsageError: a weight is packed. RunError: merging would write NaN or Inf. The model is unchanged then.
    """
    modules = dict(model.named_modules())
    names = list(layers_of(adapter.targets))
    for name in names if merge else ():
        if is_packed(modules[name]):
            message = "is quantised: ΔW cannot be added to it"
            raise UsageError(message, where=f"{name}.weight", hint="keep the adapter beside it")
    with torch.no_grad():
        merged = merged_weights(model, adapter) if merge else {}
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


@torch.no_grad()
def merged_weights(model: nn.Module, adapter: SuperLora) -> dict[str, Tensor]:
    """The weight W + ΔW of every target layer, from the factors as they are now; of a packed one, in floating point."""
    deltas, found = adapter.compute(), {}
    for name, indices in by_module(adapter.targets).items():
        rows = [(adapter.targets[index].start, deltas[index]) for index in indices]
        found[name] = splice(weight_of(model.get_submodule(name)), rows)
    return found


def by_module(targets: Sequence[Target]) -> dict[str, list[int]]:
    """The indices of the targets in each module, by row."""
    pieces: dict[str, list[int]] = {}
    for index, target in enumerate(targets):
        pieces.setdefault(target.module, []).append(index)
    return {name: sorted(indices, key=lambda index: targets[index].start) for name, indices in pieces.items()}


def layers_of(targets: Sequence[Target]) -> dict[str, list[int]]:
    """As `by_module`, including the modules whose weights are tied to them."""
    own = by_module(targets)
    return own | {name: indices for indices in own.values() for name in targets[indices[0]].tied}


def stored_parameter(model: nn.Module, name: str) -> nn.Parameter:
    """A stored parameter of the model by name, also where an adapted layer returns W + ΔW under that name."""
    module, _, own = name.rpartition(".")
    return cast(nn.Parameter, model.get_submodule(module)._parameters[own])


def _swap_beside(model: nn.Module, adapter: SuperLora, *, trainable: bool) -> None:
    """Exchange head and `also` tensors between model and adapter, without copying; a second call undoes it."""
    for own in (adapter.head, adapter.also):
        for name, other in own.items():
            parameter = stored_parameter(model, name).requires_grad_(trainable)
            own[name], parameter.data, parameter.grad = parameter.data, other.to(parameter), None
