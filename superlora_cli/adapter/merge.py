"""Add ΔW to the base's weights or subtract it, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from superlora_cli.adapter.in_turn import Take
from superlora_cli.adapter.packed import Read
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import RunError, UsageError

ELEMENTS = 2**18  # added at once


@dataclass(frozen=True)
class Change:
    """Rows of one weight, from row `row` on: before, and with ΔW added."""

    target: Target
    row: int
    before: Tensor
    after: Tensor

    @property
    def name(self) -> str:
        """The weight's name in the state dict."""
        return f"{self.target.module}.weight"


def merged_rows(
    targets: Sequence[Target],
    take: Take,
    read: Read,
    *,
    sign: int = 1,
    dtype: torch.dtype | None = None,
) -> Iterator[Change]:
    """The rows of every target with ΔW added (subtracted if sign is −1), about `ELEMENTS` at a time, in target order.

    Computed in at least float32 and cast once, to `dtype` or the original dtype.

    Args:
        take: returns the next elements of ΔW of `targets`, see `in_turn`.

    Raises:
        RunError: a merged weight is not finite. UsageError: a weight is quantised.
    """
    for target in targets:
        across = math.prod(target.shape[1:])
        step = max(1, ELEMENTS // across)
        for start in range(target.start, target.stop, step):
            stop = min(start + step, target.stop)
            before = read(f"{target.module}.weight", start, stop)
            if not before.is_floating_point():
                hint = "merge into the base it was quantised from"
                raise UsageError(f"stored as {before.dtype}, to which ΔW cannot be added", where=target.name, hint=hint)
            delta = take((stop - start) * across).view(before.shape)
            wide = before.to(torch.promote_types(before.dtype, delta.dtype))
            after = torch.add(wide, delta, alpha=sign).to(dtype or before.dtype)
            if not is_finite(after):
                where, hint = f"{target.module}.weight", "train again at a lower rate"
                raise RunError("the merged weight is not finite", where=where, hint=hint)
            yield Change(target, start, before, after)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; the sum is ten times as fast to check, but may overflow.

    >>> is_finite(torch.full((9,), 3e38)), is_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def plain_state(model: nn.Module) -> Mapping[str, Tensor]:
    """The state dict of an adapted model without the adapter, with the base's names and bytes."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("superlora.")}
