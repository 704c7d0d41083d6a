"""An adapter as a module: its trained tensors, and the updates of its targets, computed when needed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from superlora_cli.adapter import factored
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.from_base import FromBase, from_base, with_positions
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.initial import initial
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.modes import lasting
from superlora_cli.adapter.shapes import Plan
from superlora_cli.adapter.sharing import Kept, Sharing
from superlora_cli.adapter.shown import Warned
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Dense, Update, scaled, without_graph
from superlora_cli.errors import RunError, UsageError

UNCHOSEN = -1


class SuperLora(nn.Module):
    """The adapter's trained tensors, and ΔW of every target, computed from them when needed.

    Updates are computed once per call of the adapted model and never reused for another call (see `sharing`). A loop
    that can share them over an optimizer step uses `one_step`; one that changes no factor uses `kept`.

    Args:
        plain: whether every target is the weight of a plain `nn.Linear`, or a packed one.
        packed: whether the weight of a target is packed.
        base: the target slices of the base, in target order; read only where `config.reads_base`.

    Attributes:
        targets: the adapted rows, in model order.
        patterns: target patterns that expand to these targets on the same model.
        base_digest: digest of the base that ΔW depends on, if it must be checked on saving.
        plan: its shapes; `plan.params` is its number of parameters.
        factors: the trained tensors by name.
        head: trained tensors outside `factors`, by their name in the model; while the adapter is active they are in the
            model, and the base's own are here.
        also: the same for the tensors that the knob `also` trains.
        tuned: the indices of the targets whose updates get gradients; None: of all.
        strength: a number that ΔW is multiplied by, for merging and export; no file has it.
    """

    strength: float = 1.0

    def __init__(
        self,
        config: AdapterConfig,
        targets: Sequence[Target],
        *,
        plain: bool = True,
        packed: bool = False,
        base: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.sharing, self.write_is_lost = Sharing(), Warned()
        self.targets = tuple(targets)
        self.patterns = tuple(target.name for target in self.targets)
        self.base_digest: tuple[str, str] | None = None
        self.tuned: frozenset[int] | None = None
        self.head: dict[str, Tensor] = {}
        self.also: dict[str, Tensor] = {}
        self.plan: Plan = plan(config, [target.flat for target in targets])
        if config.init == "activations" and not plain:
            what = "init activations, but a target is not a plain nn.Linear"
            raise UsageError(what, where="adapter.init", hint="init: gradient or unit")
        self.packed, self.factored = packed, self._path(plain)
        self.factors = nn.ParameterDict({name: nn.Parameter(value) for name, value in initial(self.plan).items()})
        self.watch()
        self._from_base = from_base(self.plan, base)
        self._frozen: Frozen | None = None
        for key, shape in self.plan.positions.items():
            self.factors.register_buffer(key, torch.full(shape, UNCHOSEN, device="cpu"))
        self._placed = not self.positions or any(weight.is_meta for weight in base or ())
        self._started = not config.informed or config.places

    @property
    def params(self) -> int:
        """Number of trained parameters: of the factors and the `also` tensors; a head is counted separately."""
        return self.plan.params + sum(tensor.numel() for tensor in self.also.values())

    def _path(self, plain: bool) -> bool:
        """Whether training takes the factored path: as configured, or where possible and cheaper."""
        reason = factored.why_not_factored(self.plan) if plain else "a target is not a plain nn.Linear"
        if self.config.activates:
            if reason:
                message = f"activation {self.config.activation} needs two factors a weight: {reason}"
                raise UsageError(message, where="adapter.activation", hint="other targets, or groups: weight")
            return True
        if self.config.execution == "factored" and reason:
            raise UsageError(
                f"factored execution is impossible: {reason}", where="adapter.execution", hint="auto or materialised"
            )
        if self.config.execution == "auto":
            return reason is None and factored.pays(self.plan)
        return self.config.execution == "factored"

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be recreated from the seed."""
        return self.__dict__ | {"_frozen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.watch()

    def watch(self) -> None:
        """Let trainable factors keep the gradients of a graph that was made before the adapter became inactive."""
        for factor in self.factors.values():
            if factor.requires_grad and not factor._backward_hooks:
                factor.register_hook(partial(_keep, weakref.ref(factor)))

    def extra_repr(self) -> str:
        knobs = f"groups={self.config.groups}, order={self.config.order}, ranks={list(self.config.ranks)}"
        return f"{knobs}, targets={len(self.targets)}, parameters={self.plan.params}"

    def compute(self) -> list[Tensor]:
        """ΔW of every target in the shape of its weight slice, computed from the factors, never in autocast.

        Raises:
            UsageError: the update is nonlinear (`activation`), so there is no ΔW.
        """
        if not self.targets:
            return []
        frozen = self.not_trained()
        with torch.autocast(frozen.device.type, enabled=False):
            made = deltas(self.plan, dict(self.factors.items()), frozen)
        if self.strength != 1:
            made = [delta * self.strength for delta in made]
        return [delta.view(target.shape) for delta, target in zip(made, self.targets, strict=True)]

    def compute_factored(self) -> list[Update]:
        """The updates as products of factors, where `factored.why_not_factored` is None."""
        with torch.autocast(self.not_trained().device.type, enabled=False):
            made = factored.factored(self.plan, self.all_factors())
        return made if self.strength == 1 else [scaled(update, self.strength) for update in made]

    def all_factors(self) -> dict[str, Tensor]:
        """{C, A} by name, those that are not trained too."""
        return self.not_trained().factors(self.plan, dict(self.factors.items()))

    def not_trained(self) -> Frozen:
        """F, F_in and the frozen factors, on the device and in the dtype of the trained ones.

        Raises:
            UsageError: the factors are trained before the first batches gave their positions, or their start.
        """
        one = next(iter(self.factors.values()))
        frozen = self._frozen  # another thread may create it at the same time
        if frozen is None or (frozen.device, frozen.dtype) != (one.device, one.dtype):
            placed, started = self.is_placed, self.has_started
            if one.requires_grad and torch.is_grad_enabled():
                hint = "superlora_cli.inform(model, passes)"
                if not placed:
                    what = "its positions come from the first gradients, which it has not seen"
                    raise UsageError(what, where="adapter.projection", hint=hint)
                if not started:
                    what = f"its start comes from the first {self.config.informed}, which it has not seen"
                    raise UsageError(what, where="adapter.init", hint=hint)
            with lasting(one.device):
                frozen = Frozen(self.plan, device=one.device, dtype=one.dtype, base=self.from_base)
            self._frozen = frozen if placed and started else None
        return frozen

    @property
    def positions(self) -> dict[str, Tensor]:
        """Where F places the numbers of each bucket, (groups, n_in), if that is stored: in the file, and in the state
        of the model beside the factors."""
        return dict(self.factors.named_buffers())

    @property
    def is_placed(self) -> bool:
        """Whether the positions are chosen."""
        self._placed = self._placed or all(bool((places != UNCHOSEN).all()) for places in self.positions.values())
        return self._placed

    @property
    def has_started(self) -> bool:
        """Whether the factors have the start that the first batches give, or have been loaded since."""
        if not self._started:
            drawn = initial(self.plan)
            self._started = any(
                factor.is_meta or not torch.equal(factor, drawn[name].to(factor))
                for name, factor in self.factors.items()
            )
        return self._started

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Inside, the model also runs with gradients before its factors have started."""
        before, self._started = self._started, True
        try:
            yield
        finally:
            self._started = before

    @property
    def from_base(self) -> FromBase | None:
        """What is taken from the base, and the positions; the first ones until they are chosen."""
        first = {name: torch.arange(places.shape[1]).expand_as(places) for name, places in self.positions.items()}
        return with_positions(self._from_base, self.plan, self.positions if self.is_placed else first)

    def trained(self) -> tuple[Tensor, ...]:
        """The current factors: `torch.func.functional_call` replaces them temporarily."""
        return tuple(self.factors._parameters.values())  # type: ignore[arg-type]  # a call for every layer: no detours

    def make(self) -> list[Update]:
        """The updates in the form that layers use, computed from the factors."""
        made = self.compute_factored() if self.factored else self._materialised()
        if self.tuned is None:
            return made
        return [update if i in self.tuned else without_graph(update) for i, update in enumerate(made)]

    def _materialised(self) -> list[Update]:
        return [Dense(delta) for delta in self.compute()]

    def current(self) -> list[Update]:
        """The updates for a layer that runs now, or whose weight is read."""
        return self.sharing.current(self)

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Share the updates over one optimizer step: the gradients of all backward passes inside accumulate in them (in
        ΔW if materialised), and on leaving are propagated once to the factors.

        Raises:
            RunError: an optimizer step inside, when the factors have no gradients yet; or, later, a backward pass
                that comes after the block.
        """
        with self.sharing.step(self), self._no_optimizer("one_step", "before the gradients are available"):
            yield

    @contextmanager
    def kept(self, *, as_trained: bool = False) -> Iterator[None]:
        """Compute ΔW (for packed weights: the updates as in training) once for all gradient-free computations inside,
        where the factors must not change.

        Args:
            as_trained: the updates as in training for all weights, which take no more memory than there.

        Raises:
            RunError: an optimizer step inside.
        """
        with torch.inference_mode(False), torch.no_grad():
            makes = as_trained or self.packed or self.config.activates
            kept = Kept(self.trained(), plain=self.make() if makes else self._materialised())
        with self.sharing.opened(kept), self._no_optimizer("kept", "where the factors must not change"):
            yield

    @contextmanager
    def _no_optimizer(self, where: str, why: str) -> Iterator[None]:
        """Inside, refuse steps of torch optimizers on the factors."""
        own = {id(factor) for factor in self.factors.values()}

        def check(optimizer: Optimizer, *_: Any) -> None:
            if any(id(tensor) in own for group in optimizer.param_groups for tensor in group["params"]):
                raise RunError(f"optimizer.step() {why}", where=where, hint="call step() after the with block")

        watch = register_optimizer_step_pre_hook(check)
        try:
            yield
        finally:
            watch.remove()


def _keep(factor: weakref.ref[nn.Parameter], gradient: Tensor) -> None:
    """Add a gradient to that of a factor that is not trainable now; autograd would drop it."""
    own = factor()
    if own is not None and not own.requires_grad:
        own.grad = gradient.detach().clone() if own.grad is None else own.grad + gradient.detach()
