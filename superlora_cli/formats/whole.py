"""Updates of some rows of a weight as an update of the whole weight, for libraries that have no slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.adapter.layers import by_module
from superlora_cli.adapter.lowrank import Approximation
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Dense, Form, LowRank
from superlora_cli.errors import UsageError

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Lora:
    """The update of one weight in the form of other libraries' LoRA: ΔW = b · a.

    Attributes:
        a: (r, in); for a convolution (r, in, kh, kw).
        b: (out, r); for a convolution (out, r, 1, 1).
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.a.shape[0]


def join(targets: Sequence[Target], updates: Sequence[LowRank], shape: Sequence[int]) -> Lora:
    """Combine low-rank updates of rows of one weight into one LoRA of the whole weight.

    For q and v of a fused qkv, with ranks r_q and r_v:

        b (out, r_q + r_v) = [[B_q, 0], [0, 0], [0, B_v]]      a (r_q + r_v, in) = [[A_q], [A_v]]

    The rows that no target covers are exactly 0, so k does not change.

    Args:
        targets: rows of one module's weight.
        updates: the update of each, (rows, r) @ (r, columns).
        shape: shape of the whole weight, (out, in) or (out, in, kh, kw).
    """
    rank = sum(update.right.shape[0] for update in updates)
    b, at = torch.zeros(shape[0], rank), 0
    for target, update in zip(targets, updates, strict=True):
        width = update.right.shape[0]
        b[target.start : target.stop, at : at + width] = update.left
        at += width
    a = torch.cat([update.right for update in updates]).float().reshape(rank, *shape[1:])
    return Lora(a, b.reshape(*b.shape, *(1 for _ in shape[2:])))


def whole_form(targets: Sequence[Target], forms: Sequence[Form], shape: Sequence[int]) -> Form:
    """The update of a whole weight from that of its targets: the same form if the target is all of it, factors if all
    have some, else ΔW."""
    if len(forms) == 1 and targets[0].whole:
        return forms[0]
    factored = [form for form in forms if isinstance(form, LowRank)]
    if len(factored) == len(forms):
        lora = join(targets, factored, shape)
        return LowRank(lora.b.flatten(1), lora.a.flatten(1))
    return Dense(whole_delta(targets, [form.dense() for form in forms], shape))


def loras(
    targets: Sequence[Target], found: Sequence[Approximation], modules: Mapping[str, nn.Module]
) -> dict[str, Lora]:
    """Module name → its LoRA, for all modules with a target.

    Raises:
        UsageError: a layer computes something other than W x + b, or is a grouped or dilated convolution: a LoRA in
            PEFT would not be the same update.
    """
    made = {}
    for name, indices in by_module(targets).items():
        check_plain(name, modules[name])
        own = [targets[index] for index in indices]
        made[name] = join(own, [found[index].update for index in indices], weight_shape(modules[name]))
    return made


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of a module's weight."""
    weight: Any = module.weight
    return tuple(weight.shape)


def check_plain(name: str, module: nn.Module) -> None:
    """Refuse a layer for which a LoRA, computed from the layer's input, is not an update of its weight.

    Raises:
        UsageError: names the layer and the reason.
    """
    if why := why_not_plain(module):
        raise UsageError(f"PEFT has no LoRA for it: {why}", where=name, hint="--to timm or --to delta")


def why_not_plain(module: nn.Module) -> str | None:
    """Why PEFT has no LoRA for a layer; None if it has one."""
    kind = next((kind for kind in PLAIN if isinstance(module, kind)), None)
    if kind is None or type(module).forward is not kind.forward:
        return f"{type(module).__name__} does more with its weight than a plain layer"
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.groups != 1:
            return f"a convolution in {module.groups} groups"
        if set(module.dilation) != {1} or module.padding_mode != "zeros":
            return "a convolution with dilation, or with padding other than zeros"
    return None


def whole_delta(targets: Sequence[Target], deltas: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """ΔW of a whole weight (out, ...) from that of its targets; rows that no target covers are 0."""
    whole = torch.zeros(*shape)
    for target, delta in zip(targets, deltas, strict=True):
        whole[target.start : target.stop] = delta.reshape(target.shape)
    return whole
