"""The inputs of a model's target layers, as sums over the passes of some batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from superlora_cli.adapter.gradients import HINT, Average
from superlora_cli.adapter.rows_linear import as_rows
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import RunError


def covariances(
    model: nn.Module, targets: Sequence[Target], passes: Callable[[], object], average: Average | None = None
) -> Iterator[Tensor | None]:
    """The covariance of the inputs (…, columns) of every target's layer in `passes`: (columns, columns), float64; None
    for a layer that no batch reaches, such as a rare expert.

    Raises:
        RunError: inputs are not finite.
    """
    sums: dict[str, Tensor] = {}  # Σ (x, 1) (x, 1)ᵀ, by module

    def take(name: str, x: Tensor) -> None:
        flat = nn.functional.pad(as_rows(x.detach()).float(), (0, 1), value=1)
        with torch.autocast(flat.device.type, enabled=False):
            product = flat.mT @ flat
        sums[name] = sums[name] + product if name in sums else product

    modules = {target.module: model.get_submodule(target.module) for target in targets}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: take(name, inputs[0]))
        for name, module in modules.items()
    ]
    try:
        passes()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in model.parameters():
            parameter.grad = None
    sides = {target.module: target.flat.columns + 1 for target in targets}
    for name, module in modules.items():
        if name not in sums:
            sums[name] = torch.zeros(sides[name], sides[name], device=next(module.parameters()).device)
        if average:
            average(sums[name])
        if not torch.isfinite(sums[name]).all():
            raise RunError("its inputs are not finite", where=name, hint=HINT)
    for target in targets:
        moments = sums[target.module].cpu().double()
        if not moments[-1, -1]:
            yield None
            continue
        moments /= moments[-1, -1].clone()
        yield moments[:-1, :-1] - torch.outer(moments[-1, :-1], moments[-1, :-1])
