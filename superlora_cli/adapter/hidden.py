"""The weight of a layer whose update is nonlinear: there is no W + ΔW to be read, and W alone would be wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superlora_cli.errors import RunError

ABOUT = {"shape", "dtype", "device", "layout", "ndim", "requires_grad", "names", "is_leaf", "is_cuda", "is_cpu",
         "is_meta", "is_nested", "is_sparse", "is_quantized", "is_mps", "is_xpu", "itemsize", "nbytes"}  # fmt: skip
METHODS = {"size", "dim", "numel", "nelement", "element_size", "stride", "is_floating_point", "is_complex",
           "is_contiguous", "get_device", "ndimension", "type", "__len__", "__hash__", "__repr__"}  # fmt: skip


class Hidden(Tensor):
    """Says its shape, dtype and device, as code asks of a weight, and refuses to be computed with."""

    _activation: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        if name in (ABOUT if func.__name__ == "__get__" else METHODS):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs or {})
        hidden = next(each for each in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(each, cls))
        message = f"reads layer.weight, but the update B σ(A x) with σ = {hidden._activation} is no ΔW"
        raise RunError(message, where=f"torch: {name}", hint="leave this layer out of the targets")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch annotates none
        return f"Hidden({list(self.shape)}, {self.dtype}, {self._activation})"


def hide(weight: Tensor, activation: str) -> Tensor:
    """The weight, as far as it may be read."""
    hidden = weight.detach().as_subclass(Hidden)
    hidden._activation = activation
    return hidden
