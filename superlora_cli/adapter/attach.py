"""Attach an adapter to any `nn.Module`: its target weights read as W + ΔW, everything else stays as it was.

    adapter = attach(model, targets, AdapterConfig.from_knobs("lorta"))
    ...                        # model.superlora is a module of a few parameters: train it with any loop
    detach(model, merge=True)  # plain modules again, with or without the update

The classes of the adapted layers are swapped for subclasses in which `weight` is a property, so also code that
reads `layer.weight` itself sees the update, while `state_dict` keeps the base's names and bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.delta import Frozen, deltas
from superlora_cli.adapter.factors import initial
from superlora_cli.adapter.layout import Plan, TargetShape, block_of, plan
from superlora_cli.errors import RunError, UsageError


@dataclass(frozen=True)
class Target:
    """Rows `start`..`stop` of one module's weight; `shape` is the slice's own, such as (768, 768)."""

    module: str
    start: int
    stop: int
    shape: tuple[int, ...]
    whole: bool

    @property
    def name(self) -> str:
        """`blocks.0.attn.qkv[0:768]`, or the bare module name where the whole weight is the target."""
        return self.module if self.whole else f"{self.module}[{self.start}:{self.stop}]"

    @property
    def flat(self) -> TargetShape:
        """The target as (rows, columns), with the name of the block it sits in."""
        columns = 1
        for size in self.shape[1:]:
            columns *= size
        return TargetShape(self.name, self.shape[0], columns, block_of(self.module))


class SuperLora(nn.Module):
    """The adapter's trained tensors, and ΔW of every target made from them when it is needed.

    ΔW is built once per forward of the adapted model; without gradients it is cached until a parameter
    changes. A training loop that holds it for a whole optimizer step uses `one_step`.
    """

    def __init__(self, config: AdapterConfig, targets: Sequence[Target]) -> None:
        super().__init__()
        self.config = config
        self.targets = tuple(targets)
        self.plan: Plan = plan(config, [target.flat for target in targets])
        self.factors = nn.ParameterDict({name: nn.Parameter(value) for name, value in initial(self.plan).items()})
        self._frozen: Any = None
        self._frozen_at: tuple[torch.device, torch.dtype] | None = None
        self._forget()

    def _forget(self) -> None:
        self._deltas: list[Tensor] | None = None
        self._made_from: tuple[object, ...] = ()
        self._held = False

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached ΔW, which belongs to a graph, and without what the seed gives back."""
        return self.__dict__ | {"_deltas": None, "_made_from": (), "_held": False, "_frozen": None, "_frozen_at": None}

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

    def current(self) -> list[Tensor]:
        """ΔW for the forward in progress: held, cached, or made now."""
        state = self._state()
        if self._deltas is None or not (self._held or state == self._made_from):
            self._deltas, self._made_from = self.compute(), state
        return self._deltas

    def before_forward(self) -> None:
        """Make ΔW anew where gradients are wanted, outside of any checkpointed region."""
        if torch.is_grad_enabled() and not self._held:
            self._deltas = None
            self.current()

    def _state(self) -> tuple[object, ...]:
        versions = tuple((p.data_ptr(), p._version, p.dtype) for p in self.factors.values())
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.factors.values())
        return (trains, *versions)

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Hold ΔW for one optimizer step: gradients of all backward passes inside add up in ΔW, then go
        through the factors once, on leaving."""
        made = self.compute()
        leaves = [delta.detach().requires_grad_() for delta in made]
        self._deltas, self._held = leaves, True
        try:
            yield
            pairs = [(delta, leaf.grad) for delta, leaf in zip(made, leaves, strict=True) if leaf.grad is not None]
            if pairs:
                torch.autograd.backward([delta for delta, _ in pairs], [grad for _, grad in pairs])
        finally:
            self._forget()


class _Adapted:
    """Mixed into a layer's class by `attach`: `weight` is the stored weight with ΔW added to its target rows."""

    _pieces: tuple[tuple[SuperLora, int], ...]
    _base_class: type[nn.Module]
    _parameters: dict[str, Tensor]

    @property
    def weight(self) -> Tensor:
        stored = self._parameters["weight"]
        return splice(stored, self.updates())

    def updates(self) -> list[tuple[int, Tensor]]:
        """(first row, ΔW) of every target in this layer, by row."""
        ((owner, _), *_) = self._pieces
        current = owner.current()
        return [(owner.targets[i].start, current[i]) for owner, i in self._pieces]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (_blank, (self._base_class,), self.__dict__)


class _AdaptedLinear(_Adapted):
    """A plain `nn.Linear`: the gradient of rows that no target covers is never computed."""

    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        updates = self.updates()
        weight = splice(self._parameters["weight"], [(start, delta.detach()) for start, delta in updates])
        bias = self.bias
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if not torch.is_grad_enabled():
            return functional.linear(input, weight, bias)
        starts = tuple(start for start, _ in updates)
        return cast(Tensor, _RowsLinear.apply(input, weight, bias, starts, *(delta for _, delta in updates)))


class _RowsLinear(torch.autograd.Function):
    """y = x Wᵀ + b for a frozen W that already holds its updates; gradients for x, b and the updated rows."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, starts: tuple[int, ...], *updates: Tensor
    ) -> Tensor:
        return functional.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, starts, *updates = inputs
        ctx.save_for_backward(input, weight)
        ctx.rows = [(start, len(delta), delta.dtype) for start, delta in zip(starts, updates, strict=True)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        input, weight = ctx.saved_tensors
        flat, inputs = grad.flatten(0, -2), input.flatten(0, -2)  # (B·T, out), (B·T, in)
        for_input = grad @ weight if ctx.needs_input_grad[0] else None
        for_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        for_rows = [
            (flat[:, start : start + size].mT @ inputs).to(dtype) if needed else None
            for (start, size, dtype), needed in zip(ctx.rows, ctx.needs_input_grad[4:], strict=True)
        ]
        return for_input, None, for_bias, None, *for_rows


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _adapted_class(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of `base` whose `weight` is W + ΔW; one per base class, so that types stay comparable."""
    plain = base.forward is nn.Linear.forward
    mixin = _AdaptedLinear if plain else _Adapted
    return type(f"Adapted{base.__name__}", (mixin, base), {"_base_class": base})


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
    adapter = SuperLora(config, targets)
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
