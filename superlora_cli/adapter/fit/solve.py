"""Refine a start to the closest ΔW: least squares over all trained tensors at once, by L-BFGS through `delta`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.fit.start import start
from superlora_cli.adapter.from_base import FromBase
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.lowrank import errors_of, whole_error
from superlora_cli.adapter.shapes import Plan
from superlora_cli.errors import RunError

STEPS = 200
ENOUGH = 1e-7  # a relative error that float32 factors cannot improve


@dataclass(frozen=True)
class Fit:
    """Trained tensors whose ΔW approximates the wanted one.

    Attributes:
        tensors: name → float32 tensor, as `plan.tensors` has them.
        errors: of every target, ‖ΔW − wanted‖ / ‖wanted‖; ‖ΔW‖ if the wanted one is 0.
        error: over all targets.
        start_error: over all targets, before the first step.
        steps: number of L-BFGS steps taken.
    """

    tensors: dict[str, Tensor]
    errors: tuple[float, ...]
    error: float
    start_error: float
    steps: int


def fit(plan: Plan, wanted: Sequence[Tensor], *, steps: int = STEPS, base: FromBase | None = None) -> Fit:
    """Fit the adapter of `plan` to `wanted`, in float64.

    Args:
        plan: the adapter's shapes.
        wanted: ΔW of every target, (rows, columns) each.
        steps: of L-BFGS, at most; 0 uses only the closed form.
        base: what is taken from the base.

    Raises:
        RunError: a wanted ΔW is not finite.
    """
    for target, delta in zip(plan.targets, wanted, strict=True):
        if not torch.isfinite(delta).all():
            raise RunError("the difference is not finite", where=target.name)
    goal = [delta.detach().double() for delta in wanted]
    frozen = Frozen(plan, device=goal[0].device, dtype=torch.float64, base=base)
    values = start(plan, goal, frozen)
    start_error = whole_error(_errors(plan, values, goal, frozen))
    taken = 0
    if steps and start_error > ENOUGH:
        polished, taken = _polish(plan, values, goal, frozen, steps)
        if whole_error(_errors(plan, polished, goal, frozen)) < start_error:
            values = polished
    tensors = {name: value.float() for name, value in values.items()}
    found = _errors(plan, {name: value.double() for name, value in tensors.items()}, goal, frozen)
    return Fit(tensors, tuple(error for _, error in found), whole_error(found), start_error, taken)


def measured(
    plan: Plan,
    tensors: dict[str, Tensor],
    wanted: Sequence[Tensor],
    found: Fit,
    *,
    base: FromBase | None = None,
) -> Fit:
    """What was `found`, with other tensors, such as its own in fewer bits, and their errors."""
    goal = [delta.detach().double() for delta in wanted]
    frozen = Frozen(plan, device=goal[0].device, dtype=torch.float64, base=base)
    errors = _errors(plan, {name: value.double() for name, value in tensors.items()}, goal, frozen)
    return replace(found, tensors=tensors, errors=tuple(error for _, error in errors), error=whole_error(errors))


def _polish(
    plan: Plan, values: dict[str, Tensor], goal: Sequence[Tensor], frozen: Frozen, steps: int
) -> tuple[dict[str, Tensor], int]:
    """L-BFGS on ‖ΔW − goal‖² / ‖goal‖² over all tensors, each in units of its own start: (tensors, steps taken)."""
    size = sum(float(delta.square().sum()) for delta in goal) or 1.0
    units = {name: max(math.sqrt(float(value.square().mean())), 1e-3) for name, value in values.items()}
    free = {name: (value / units[name]).requires_grad_() for name, value in values.items()}
    optimizer = torch.optim.LBFGS(
        list(free.values()),
        max_iter=steps,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-14,
        tolerance_change=1e-14,
    )

    def scaled() -> dict[str, Tensor]:
        return {name: value * units[name] for name, value in free.items()}

    def loss() -> Tensor:
        optimizer.zero_grad()
        made = deltas(plan, scaled(), frozen)
        off = torch.stack([(one - two).square().sum() for one, two in zip(made, goal, strict=True)]).sum() / size
        off.backward()
        return off

    optimizer.step(loss)
    state = optimizer.state[next(iter(free.values()))]
    with torch.no_grad():
        return {name: value.detach() for name, value in scaled().items()}, int(state.get("n_iter", 0))


@torch.no_grad()
def _errors(plan: Plan, values: dict[str, Tensor], goal: Sequence[Tensor], frozen: Frozen) -> list[tuple[float, float]]:
    return errors_of(deltas(plan, values, frozen), goal)
