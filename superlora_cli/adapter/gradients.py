"""Gradients of a model's target weights, which are not trained, summed over backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from superlora_cli.adapter.layers import by_module, stored_parameter
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import RunError

HINT = "check the base and the data, or train in fp32"
Average = Callable[[Tensor], object]  # replaces a tensor by its mean over all processes that train together


def gradients(
    model: nn.Module, targets: Sequence[Target], passes: Callable[[], object], average: Average | None = None
) -> list[Tensor]:
    """The gradient of every target's rows over the backward passes in `passes`: (rows, columns), float32.

    It is zero for a layer that no batch reaches, such as a rare expert. A weight's own gradient is dropped as soon as
    its rows are taken. No other gradient is computed.

    Raises:
        RunError: a gradient is not finite.
    """
    weights = {name: stored_parameter(model, f"{name}.weight") for name in by_module(targets)}
    sums: dict[str, Tensor] = {}

    def take(weight: Tensor, own: Sequence[Target]) -> None:
        assert weight.grad is not None
        for target in own:
            rows = weight.grad[target.start : target.stop].flatten(1)
            if target.name in sums:
                sums[target.name] += rows
            else:
                sums[target.name] = rows.to(torch.float32, copy=True)
        weight.grad = None

    with _training_only(model, list(weights.values())):
        hooks = [
            weights[name].register_post_accumulate_grad_hook(
                lambda weight, own=[targets[index] for index in indices]: take(weight, own)
            )
            for name, indices in by_module(targets).items()
        ]
        try:
            passes()
        finally:
            for hook in hooks:
                hook.remove()
    for target in targets:
        if target.name not in sums:
            shape = target.flat.rows, target.flat.columns
            sums[target.name] = torch.zeros(shape, device=weights[target.module].device)
        if average:
            average(sums[target.name])
        if not torch.isfinite(sums[target.name]).all():
            raise RunError("the first gradient is not finite", where=target.name, hint=HINT)
    return [sums[target.name] for target in targets]


@contextmanager
def _training_only(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, only these parameters require gradients; no parameter has one afterwards."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        for parameter in model.parameters():
            parameter.grad = None
