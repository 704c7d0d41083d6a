"""σ of the knob `activation`: the update of a layer's outputs is B σ(A x), for ΔW = B A of the equation (LoDA).

The names are those of `torch.nn.functional`. Every σ is zero at zero, so an update that starts at zero is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from superlora_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Activation = Literal["identity", "relu", "leaky_relu", "gelu", "silu", "tanh"]
ACTIVATIONS = get_args(Activation)
NONE: Activation = "identity"
MEANING = "the update is B σ(A x) with σ = {}: there is no ΔW to merge or export"


def activated(name: str, x: Tensor) -> Tensor:
    """σ(x), entry by entry."""
    from torch.nn import functional

    found: Tensor = x if name == NONE else getattr(functional, name)(x)
    return found


def no_delta(name: str, where: str = "adapter.activation") -> UsageError:
    """The error of whatever needs a ΔW, which an update with the activation `name` has not."""
    message = (
        f"B σ(A x) with σ = {name} has no ΔW, so it cannot be merged, exported, added to others or measured as one"
    )
    return UsageError(message, where=where, hint="use it as an adapter, beside its base")
