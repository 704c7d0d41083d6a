"""Attach an adapter to any `nn.Module`: its target weights read as W + ΔW, everything else stays as it was.

    adapter = attach(model, targets, AdapterConfig.from_knobs("lorta"))
    ...                        # model.superlora is a module of a few parameters: train it with any loop
    detach(model, merge=True)  # plain modules again, with or without the update

The classes of the adapted layers are swapped for subclasses in which `weight` is a property, so also code that
reads `layer.weight` itself sees the update, while `state_dict` keeps the base's names and bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.adapter import updates
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.delta import Frozen, deltas
from superlora_cli.adapter.factors import initial
from superlora_cli.adapter.layout import Plan, plan
from superlora_cli.adapter.rows_linear import RowsLinear
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Dense, Kronecker, LowRank, Update
from superlora_cli.errors import RunError, UsageError


class SuperLora(nn.Module):
    """The adapter's trained tensors, and ΔW of every target made from them when it is needed.

    Updates are made once per forward of the adapted model; without gradients ΔW is cached until a parameter
    changes. A training loop that holds them for a whole optimizer step uses `one_step`.
    """

    def __init__(self, config: AdapterConfig, targets: Sequence[Target], *, plain: bool = True) -> None:
        super().__init__()
        self.config = config
        self.targets = tuple(targets)
        self.plan: Plan = plan(config, [target.flat for target in targets])
        self.factored = self._path(plain)
        self.factors = nn.ParameterDict({name: nn.Parameter(value) for name, value in initial(self.plan).items()})
        self._frozen: Any = None
        self._frozen_at: tuple[torch.device, torch.dtype] | None = None
        self._forget()

    def _path(self, plain: bool) -> bool:
        """Whether training takes the factored path: as asked, or where it is possible and costs less."""
        reason = updates.why_not_factored(self.plan) if plain else "a target is no plain nn.Linear"
        if self.config.execution == "factored" and reason:
            raise UsageError(f"no factored execution: {reason}", where="adapter.execution", hint="auto or materialised")
        if self.config.execution == "auto":
            return reason is None and updates.pays(self.plan)
        return self.config.execution == "factored"

    def _forget(self) -> None:
        self._updates: list[Update] | None = None
        self._made_from: tuple[object, ...] = ()
        self._held = False

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached ΔW, which belongs to a graph, and without what the seed gives back."""
        return self.__dict__ | {"_updates": None, "_made_from": (), "_held": False, "_frozen": None, "_frozen_at": None}

    def extra_repr(self) -> str:
        knobs = f"groups={self.config.groups}, order={self.config.order}, ranks={list(self.config.ranks)}"
        return f"{knobs}, targets={len(self.targets)}, parameters={self.plan.params}"

    def forward(self, input: Tensor) -> Tensor:
        """The identity: an `nn.Sequential` that carries an adapter calls it like any other child."""
        return input

    def compute(self) -> list[Tensor]:
        """ΔW of every target in the shape of its weight slice, freshly made from the factors, never in autocast."""
        factors = dict(self.factors.items())
        one = next(iter(factors.values()))
        place = one.device, one.dtype
        if self._frozen_at != place:
            self._frozen, self._frozen_at = Frozen(self.plan, device=one.device, dtype=one.dtype), place
        with torch.autocast(one.device.type, enabled=False):
            made = deltas(self.plan, factors, self._frozen)
        return [delta.view(target.shape) for delta, target in zip(made, self.targets, strict=True)]

    def _make(self) -> list[Update]:
        """The updates as the layers are to meet them: factored only where it is trained, and where it pays."""
        if not (self.factored and torch.is_grad_enabled()):
            return [Dense(delta) for delta in self.compute()]
        factors = dict(self.factors.items())
        with torch.autocast(next(iter(factors.values())).device.type, enabled=False):
            return updates.factored(self.plan, factors)

    def current(self) -> list[Update]:
        """The updates for the forward in progress: held, cached, or made now."""
        if self._held and self._updates is not None:
            return self._updates
        state = self._state()
        if self._updates is None or state != self._made_from:
            self._updates, self._made_from = self._make(), state
        return self._updates

    def before_forward(self) -> None:
        """Make the updates anew where gradients are wanted, outside of any checkpointed region."""
        if torch.is_grad_enabled() and not self._held:
            self._updates = None
            self.current()

    def _state(self) -> tuple[object, ...]:
        versions = tuple((p.data_ptr(), p._version, p.dtype) for p in self.factors.values())
        return (torch.is_grad_enabled(), *versions)

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Hold the updates for one optimizer step: gradients of all backward passes inside add up in them (in ΔW
        where it is materialised), then go through the rest of the factors' graph once, on leaving."""
        made = self._make()
        sources = list({id(tensor): tensor for update in made for tensor in update.tensors}.values())
        leaves = {id(tensor): tensor.detach().requires_grad_() for tensor in sources}
        self._updates = [replace_tensors(update, leaves) for update in made]
        self._held = True
        try:
            yield
            pairs = [(tensor, leaves[id(tensor)].grad) for tensor in sources if leaves[id(tensor)].grad is not None]
            if pairs:
                torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])
        finally:
            self._forget()


def replace_tensors(update: Update, leaves: Mapping[int, Tensor]) -> Update:
    """The same update on other tensors, found by the identity of its own."""
    own = {name: leaves[id(value)] for name, value in vars(update).items() if isinstance(value, Tensor)}
    return cast(Update, replace(cast(Any, update), **own))


class _Adapted:
    """Mixed into a layer's class by `attach`: `weight` is the stored weight with ΔW added to its target rows."""

    _pieces: tuple[tuple[SuperLora, int], ...]
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
    mixin = _AdaptedLinear if is_plain_linear(base) else _Adapted
    return type(f"Adapted{base.__name__}", (mixin, base), {"_base_class": base})


def is_plain_linear(kind: type[nn.Module]) -> bool:
    """Whether a class computes x Wᵀ + b and nothing else."""
    return kind.forward is nn.Linear.forward


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


class _BeforeForward:
    """The adapted model's forward pre-hook; a class so that the model stays picklable."""

    def __init__(self, adapter: SuperLora) -> None:
        self.adapter = adapter

    def __call__(self, module: nn.Module, args: object) -> None:
        self.adapter.before_forward()


def attach(model: nn.Module, targets: Sequence[Target], config: AdapterConfig) -> SuperLora:
    """Freeze `model`, adapt `targets` of it, and return the adapter, registered as `model.superlora`.

    Raises:
        UsageError: the knobs do not fit the targets, a target is no weight of this model, or the model
            has an adapter already.
    """
    if hasattr(model, "superlora"):
        raise UsageError("the model has an adapter already", hint="merge or remove it first")
    modules = dict(model.named_modules())
    pieces: dict[str, list[int]] = {}
    for index, target in enumerate(targets):
        weight = getattr(modules.get(target.module), "weight", None)
        if not isinstance(weight, nn.Parameter) or weight[target.start : target.stop].shape != target.shape:
            raise UsageError(f"the model has no weight of shape {list(target.shape)}", where=target.name)
        pieces.setdefault(target.module, []).append(index)
    for indices in pieces.values():
        indices.sort(key=lambda index: targets[index].start)
        for one, following in pairwise(indices):
            if targets[following].start < targets[one].stop:
                raise UsageError("two targets share rows", where=f"{targets[one].name}, {targets[following].name}")
    adapter = SuperLora(config, targets, plain=all(is_plain_linear(type(modules[name])) for name in pieces))
    model.requires_grad_(False)
    adapter.to(next(model.parameters()).device)
    for name, indices in pieces.items():
        module = modules[name]
        module.__class__ = _adapted_class(type(module))
        module.__dict__["_pieces"] = tuple((adapter, index) for index in indices)
    model.superlora = adapter
    model.register_forward_pre_hook(_BeforeForward(adapter))
    return adapter


def detach(model: nn.Module, *, merge: bool = False) -> None:
    """Take the adapter off: plain modules again, with ΔW added to their weights if `merge`.

    Raises:
        RunError: merging would write NaN or Inf; nothing has been changed then.
    """
    adapter = cast(SuperLora, model.superlora)
    modules = dict(model.named_modules())
    with torch.no_grad():
        merged = {}
        for name in dict.fromkeys(target.module for target in adapter.targets):
            merged[name] = modules[name].weight if merge else None
            if merge and not torch.isfinite(cast(Tensor, merged[name])).all():
                raise RunError("the merged weight is not finite", where=f"{name}.weight")
        for name, weight in merged.items():
            module = modules[name]
            module.__class__ = cast(Any, module)._base_class
            del module.__dict__["_pieces"]
            if weight is not None:
                cast(Tensor, module.weight).copy_(cast(Tensor, weight))
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, _BeforeForward):
            del model._forward_pre_hooks[key]
    del model.superlora
