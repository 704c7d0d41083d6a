"""GPT-2's layers as linear ones.

transformers' `Conv1D` computes what a linear layer does, but stores its weight as (in, out). Adapters, and everything
that reads or writes weights by rows, expect (out, in): so the layers are exchanged when such a model is built, and
back again when it is written.
"""

from __future__ import annotations

from torch import Tensor, nn


def has_conv1d(model: nn.Module) -> bool:
    """Whether a model has a `Conv1D`; transformers is not imported."""
    return any(type(module).__module__ == "transformers.pytorch_utils" for module in model.modules())


def as_linear(model: nn.Module) -> None:
    """Exchange every `Conv1D` of a model for an `nn.Linear` with the same values and names."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.nx, module.nf, device="meta")
            linear.weight = _turned(module.weight)
            linear.bias = module.bias
            linear.exchanged = True  # type: ignore[assignment]
            model.set_submodule(name, linear)


def as_conv1d(model: nn.Module) -> None:
    """Undo `as_linear`."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if getattr(module, "exchanged", False):
            assert isinstance(module, nn.Linear)
            layer = Conv1D(0, 0)
            layer.nf, layer.nx = module.out_features, module.in_features
            layer.weight, layer.bias = _turned(module.weight), module.bias
            model.set_submodule(name, layer)


def _turned(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().T.contiguous(), requires_grad=weight.requires_grad)
