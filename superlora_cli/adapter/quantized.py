"""Q_b: trained numbers quantised to a few bits, {C, A} = F_in(Q_b(θ)).

The 2^b levels of a tensor are s · (k + ½) for k = −2^(b−1) … 2^(b−1) − 1: evenly spaced by its scale s, none of
them zero. With 16 bits a number is a bfloat16, which needs no scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.initial import start_scale
from superlora_cli.adapter.shapes import Plan

BFLOAT = 16
TRIED = 200  # spacings to choose from when a finished adapter is quantised
# bits → spacing with the smallest mean square error for standard normal numbers: J. Max, Quantizing for minimum
# distortion, 1960
SPACING = {1: 1.596, 2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}


def scales(plan: Plan) -> dict[str, float]:
    """Name of a trained tensor → s, the distance between neighbouring levels; {} without levels.

    From `config.scales` if the adapter was quantised after training, else from the scale of `init: unit`.
    """
    config = plan.config
    if not config.has_levels:
        return {}
    if config.scales:
        return dict(zip(plan.tensors, config.scales, strict=True))
    of_start = {unit.name(part): start_scale(unit.shape, part) for unit in plan.units for part in unit.trained}
    assert config.bits is not None
    return {name: SPACING[config.bits] * of_start.get(name, 1.0) for name in plan.tensors}


def quantized(plan: Plan, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Q_b of every trained tensor; the gradient passes as if it were the identity (straight-through)."""
    bits, spacing = plan.config.bits, scales(plan)
    if bits is None:
        return dict(trained)
    made = {}
    for name, tensor in trained.items():
        values = tensor.detach()
        if bits == BFLOAT:
            nearest = values.to(torch.bfloat16).to(values.dtype)
        else:
            nearest = levels(numbers(values, spacing[name], bits), spacing[name], bits, values.dtype)
        made[name] = nearest + (tensor - values)  # + 0, exactly
    return made


def quantised_after(plan: Plan, trained: Mapping[str, Tensor], bits: int) -> AdapterConfig:
    """The knobs of a finished float32 adapter with `bits` bits per number, with scales fitted to its numbers."""
    if bits == BFLOAT:
        return replace(plan.config, bits=bits)
    return replace(plan.config, bits=bits, scales=tuple(_nearest_scale(trained[name], bits) for name in plan.tensors))


def _nearest_scale(values: Tensor, bits: int) -> float:
    """The spacing, to three digits, with the smallest mean square error of the levels from the values."""
    values = values.detach().double().flatten()
    widest = float(values.abs().max()) / (2 ** (bits - 1) - 0.5) or 1e-6  # the outermost level is the largest value
    tried = [float(f"{widest * share / TRIED:.3g}") for share in range(1, TRIED + 1)]
    missed = [float((levels(numbers(values, s, bits), s, bits, values.dtype) - values).square().sum()) for s in tried]
    return tried[missed.index(min(missed))]


def as_stored(plan: Plan, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors as stored in a file: level indices (uint8), bfloat16, or unchanged."""
    bits, spacing = plan.config.bits, scales(plan)
    if bits is None:
        return dict(trained)
    if bits == BFLOAT:
        return {name: tensor.detach().to(torch.bfloat16) for name, tensor in trained.items()}
    return {name: numbers(tensor.detach(), spacing[name], bits) for name, tensor in trained.items()}


def as_trained(plan: Plan, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors from those stored in a file: float32 values that `quantized` leaves unchanged."""
    bits, spacing = plan.config.bits, scales(plan)
    if bits is None:
        return dict(stored)
    return {name: t.float() if bits == BFLOAT else levels(t, spacing[name], bits) for name, t in stored.items()}


def numbers(values: Tensor, scale: float, bits: int) -> Tensor:
    """The index of the nearest level of every value, from 0: uint8.

    >>> numbers(torch.tensor([-9.0, -0.1, 0.0, 0.6, 9.0]), 0.5, 2)
    tensor([0, 1, 2, 3, 3], dtype=torch.uint8)
    """
    half = 2 ** (bits - 1)
    return ((values / scale).floor().clamp(-half, half - 1) + half).to(torch.uint8)


def levels(numbered: Tensor, scale: float, bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The level values of these indices.

    >>> levels(torch.tensor([0, 1, 2, 3], dtype=torch.uint8), 0.5, 2)
    tensor([-0.7500, -0.2500,  0.2500,  0.7500])
    """
    return (numbered.to(dtype) - (2 ** (bits - 1) - 0.5)) * scale


def pack(numbered: Tensor, bits: int) -> Tensor:
    """Indices of `bits` bits each, packed without gaps, lowest bit first: (⌈n · bits / 8⌉,) uint8.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4)
    tensor([33,  3], dtype=torch.uint8)
    """
    single = (numbered.cpu().numpy().reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(single.ravel(), bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`.

    Raises:
        ValueError: the number of bytes does not match `shape`.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != (-(-count * bits // 8),):
        raise ValueError(f"{list(packed.shape)} bytes for {count} numbers of {bits} bits")
    single = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(-1, bits)
    return torch.from_numpy((single << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8)).reshape(shape)
