"""ΔW into the base's weights, and out of them again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from superlora_cli.adapter.layers import splice
from superlora_cli.adapter.module import SuperLora
from superlora_cli.errors import RunError


def merged_state(
    model: nn.Module, adapter: SuperLora, *, sign: int = 1, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of the plain model with ΔW added to (or, with sign −1, subtracted from) its targets.

    Added in float32 at least and cast once. Rows that no target covers keep their bits, unless `dtype` casts all.

    Returns:
        (name → tensor without the adapter's own, the names that were changed).

    Raises:
        RunError: a merged weight is not finite.
    """
    with torch.no_grad():
        updates: dict[str, list[tuple[int, Tensor]]] = {}
        for target, delta in zip(adapter.targets, adapter.compute(), strict=True):
            updates.setdefault(f"{target.module}.weight", []).append((target.start, sign * delta))
        state: dict[str, Tensor] = {}
        for name, tensor in plain_state(model).items():
            pieces = sorted(updates.get(name, ()), key=lambda piece: piece[0])
            whole = splice(tensor.detach(), pieces, dtype=dtype) if pieces else tensor.detach()
            state[name] = whole.to(dtype) if dtype and whole.is_floating_point() else whole
            if not torch.isfinite(state[name]).all():
                raise RunError("the merged weight is not finite", where=name, hint="train again at a lower rate")
    return state, sorted(updates)


def plain_state(model: nn.Module) -> Mapping[str, Tensor]:
    """The state dict of an adapted model without the adapter: the base's names and bytes."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("superlora.")}
