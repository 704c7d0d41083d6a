"""An adapter as a module: its trained tensors, and from them the updates of its targets when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from superlora_cli.adapter import svd, updates
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.delta import Frozen, deltas
from superlora_cli.adapter.factors import initial
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.shapes import Plan
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Dense, Update
from superlora_cli.errors import UsageError


class SuperLora(nn.Module):
    """The adapter's trained tensors, and ΔW of every target made from them when it is needed.

    Updates are made once per forward of the adapted model; without gradients ΔW is cached until a parameter
    changes. A training loop that holds them for a whole optimizer step uses `one_step`.

    Args:
        plain: whether every target is the weight of a plain `nn.Linear`.
        base: the base's target slices, in their order; only `frozen: svd` reads them.

    Attributes:
        targets: the rows it adapts, in model order.
        patterns: what gives these targets back on the same model.
        base_digest: of the base that frozen factors come from, where that is to be looked at when it is saved.
        plan: its shapes; `plan.params` is the number of its parameters.
        factors: the trained tensors by name.
        head: trained tensors outside of `factors`, by their name in the model; while the adapter is active the model
            holds them, and the base's own are here.
    """

    def __init__(
        self,
        config: AdapterConfig,
        targets: Sequence[Target],
        *,
        plain: bool = True,
        base: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.targets = tuple(targets)
        self.patterns = tuple(target.name for target in self.targets)
        self.base_digest: tuple[str, str] | None = None
        self.head: dict[str, Tensor] = {}
        self.plan: Plan = plan(config, [target.flat for target in targets])
        self.factored = self._path(plain)
        self.factors = nn.ParameterDict({name: nn.Parameter(value) for name, value in initial(self.plan).items()})
        self._from_base = svd.planes(self.plan, base) if config.frozen == "svd" and base is not None else None
        self._frozen: Frozen | None = None
        self._frozen_at = torch.device("cpu"), torch.float32
        self.forget()

    def _path(self, plain: bool) -> bool:
        """Whether training takes the factored path: as asked, or where it is possible and costs less."""
        reason = updates.why_not_factored(self.plan) if plain else "a target is no plain nn.Linear"
        if self.config.execution == "factored" and reason:
            raise UsageError(f"no factored execution: {reason}", where="adapter.execution", hint="auto or materialised")
        if self.config.execution == "auto":
            return reason is None and updates.pays(self.plan)
        return self.config.execution == "factored"

    def forget(self) -> None:
        """Drop what was made from the factors."""
        self._updates: list[Update] | None = None
        self._made_from: tuple[object, ...] = ()
        self._held = False

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached ΔW, which belongs to a graph, and without what the seed gives back."""
        return self.__dict__ | {"_updates": None, "_made_from": (), "_held": False, "_frozen": None}

    def extra_repr(self) -> str:
        knobs = f"groups={self.config.groups}, order={self.config.order}, ranks={list(self.config.ranks)}"
        return f"{knobs}, targets={len(self.targets)}, parameters={self.plan.params}"

    def compute(self) -> list[Tensor]:
        """ΔW of every target in the shape of its weight slice, freshly made from the factors, never in autocast."""
        frozen, (device, _) = self._not_trained(), self._frozen_at
        with torch.autocast(device.type, enabled=False):
            made = deltas(self.plan, dict(self.factors.items()), frozen)
        return [delta.view(target.shape) for delta, target in zip(made, self.targets, strict=True)]

    def compute_factored(self) -> list[Update]:
        """The updates as products of factors, where `updates.why_not_factored` has nothing against it."""
        frozen, (device, _) = self._not_trained(), self._frozen_at
        with torch.autocast(device.type, enabled=False):
            return updates.factored(self.plan, frozen.factors(self.plan, dict(self.factors.items())))

    def _not_trained(self) -> Frozen:
        """F, F_in and the frozen factors where the trained ones are."""
        one = next(iter(self.factors.values()))
        if self._frozen is None or self._frozen_at != (one.device, one.dtype):
            self._frozen = Frozen(self.plan, device=one.device, dtype=one.dtype, base=self._from_base)
            self._frozen_at = one.device, one.dtype
        return self._frozen

    def _make(self) -> list[Update]:
        """The updates as the layers are to meet them: factored only where it is trained, and where it pays."""
        if not (self.factored and torch.is_grad_enabled()):
            return [Dense(delta) for delta in self.compute()]
        return self.compute_factored()

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
        leaves = {id(tensor): tensor.detach().requires_grad_(tensor.requires_grad) for tensor in sources}
        self._updates = [replace_tensors(update, leaves) for update in made]
        self._held = True
        try:
            yield
            pairs = [(tensor, leaves[id(tensor)].grad) for tensor in sources if leaves[id(tensor)].grad is not None]
            if pairs:
                torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])
        finally:
            self.forget()


def replace_tensors(update: Update, leaves: Mapping[int, Tensor]) -> Update:
    """The same update on other tensors, found by the identity of its own."""
    own = {name: leaves[id(value)] for name, value in vars(update).items() if isinstance(value, Tensor)}
    return cast(Update, replace(cast(Any, update), **own))
