"""How much memory quantised layers take."""

from __future__ import annotations

from torch import nn

from superlora_cli.adapter.packed import is_packed, tensors_of

NOTES = {"weight_format": 0, "weight.quant_state.bitsandbytes__nf4": 4}  # in memory; as bytes they are more


def sizes(model: nn.Module) -> dict[str, int]:
    """Bytes of every quantised layer of a model, by its name."""
    return {
        name: sum(NOTES.get(own, part.nbytes) for own, part in tensors_of(layer))
        for name, layer in model.named_modules()
        if is_packed(layer)
    }
