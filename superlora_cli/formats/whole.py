"""Updates of rows of a weight, seen as an update of the whole weight: what other libraries can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.adapter.lowrank import Approximation
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import LowRank
from superlora_cli.errors import UsageError

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Lora:
    """One weight's update as other libraries see LoRA: ΔW = b · a.

    Attributes:
        a: (r, in), or for a convolution (r, in, kh, kw).
        b: (out, r), or (out, r, 1, 1).
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]


def by_module(targets: Sequence[Target]) -> dict[str, list[int]]:
    """Module name → indices of its targets, in order."""
    found: dict[str, list[int]] = {}
    for index, target in enumerate(targets):
        found.setdefault(target.module, []).append(index)
    return found


def join(targets: Sequence[Target], updates: Sequence[LowRank], shape: Sequence[int]) -> Lora:
    """Low-rank updates of rows of one weight as one LoRA of the whole weight.

    For q and v of a fused qkv, of ranks r_q and r_v:

        b (out, r_q + r_v) = [[B_q, 0], [0, 0], [0, B_v]]      a (r_q + r_v, in) = [[A_q], [A_v]]

    The rows that no target covers are exactly 0, so k stays as it is.

    Args:
        targets: rows of one module's weight.
        updates: (rows, r) @ (r, columns) of each.
        shape: of the whole weight, (out, in) or (out, in, kh, kw).
    """
    rank = sum(update.right.shape[0] for update in updates)
    b, at = torch.zeros(shape[0], rank), 0
    for target, update in zip(targets, updates, strict=True):
        width = update.right.shape[0]
        b[target.start : target.stop, at : at + width] = update.left
        at += width
    a = torch.cat([update.right for update in updates]).float().reshape(rank, *shape[1:])
    return Lora(a, b.reshape(*b.shape, *(1 for _ in shape[2:])))


def loras(
    targets: Sequence[Target], found: Sequence[Approximation], modules: Mapping[str, nn.Module]
) -> dict[str, Lora]:
    """Module name → its LoRA, for all modules with a target.

    Raises:
        UsageError: a layer that computes something else than W x + b, or whose convolution is grouped or dilated:
            LoRA in PEFT would not be the update.
    """
    made = {}
    for name, indices in by_module(targets).items():
        check_plain(name, modules[name])
        own = [targets[index] for index in indices]
        made[name] = join(own, [found[index].update for index in indices], weight_shape(modules[name]))
    return made


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Of a module's weight."""
    weight: Any = module.weight
    return tuple(weight.shape)


def check_plain(name: str, module: nn.Module) -> None:
    """Refuse a layer whose LoRA, computed beside it from its input, would not be an update of its weight.

    Raises:
        UsageError: names the layer and what it does.
    """
    kind = next((kind for kind in PLAIN if isinstance(module, kind)), None)
    why = None
    if kind is None or type(module).forward is not kind.forward:
        why = f"{type(module).__name__} does more with its weight than a plain layer"
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups != 1:
            why = f"a convolution in {module.groups} groups"
        elif set(module.dilation) != {1} or module.padding_mode != "zeros":
            why = "a convolution with dilation or other padding than zeros"
    if why:
        raise UsageError(f"PEFT has no LoRA for it: {why}", where=name, hint="--to timm or --to delta")


def whole_delta(targets: Sequence[Target], deltas: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """ΔW of a whole weight (out, ...) from that of its targets; rows that none covers are 0."""
    whole = torch.zeros(*shape)
    for target, delta in zip(targets, deltas, strict=True):
        whole[target.start : target.stop] = delta.reshape(target.shape)
    return whole
