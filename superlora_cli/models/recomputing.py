"""Gradient checkpointing, which libraries call by different names."""

from __future__ import annotations

from typing import Any


def recompute(model: Any) -> None:
    """Recompute activations in the backward pass instead of storing them."""
    if hasattr(model, "enable_gradient_checkpointing"):  # diffusers
        model.enable_gradient_checkpointing()
    elif hasattr(model, "activation_checkpointing_enable"):  # transformers
        model.activation_checkpointing_enable()
    elif hasattr(model, "gradient_checkpointing_enable"):  # transformers before 5.20
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:  # timm, and our own U-Net
        model.set_grad_checkpointing(True)
