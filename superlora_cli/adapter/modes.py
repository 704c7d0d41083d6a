"""Torch's modes and an adapter: tensors that outlive a mode, and transforms that need plain operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def lasting(device: torch.device) -> Iterator[None]:
    """Inside, created tensors can be reused later in any mode, whatever mode the caller is in."""
    traced = _disable_current_modes() if torch.compiler.is_exporting() else nullcontext()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        temporarily_clear_interpreter_stack(),  # of torch.func
        traced,
    ):
        yield


def only_operators() -> bool:
    """Whether the code runs under torch.func, forward-mode differentiation, an export or a trace."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
    )
