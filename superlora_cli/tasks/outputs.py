"""The outputs of a model, whatever its task."""

from __future__ import annotations

import torch
from torch import Tensor

from superlora_cli.errors import RunError


def check_outputs(outputs: Tensor, where: str, called: str = "images") -> None:
    """Refuse outputs (n, ...) that are not finite, one row per image or text.

    Args:
        where: the model, for the message.
        called: what the rows are.

    Raises:
        RunError: some are NaN or Inf.
    """
    bad = int((~torch.isfinite(outputs)).flatten(1).any(1).sum())
    if bad:
        message = f"the model gives NaN or Inf for {bad} of {len(outputs)} {called}"
        hint = "train.precision=fp32, or a base and an adapter with smaller weights"
        raise RunError(message, where=where, hint=hint)
