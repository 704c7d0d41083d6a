"""Eq. 2: the one place where trained tensors become weight updates.

    ΔW_group = F(⊗_k C_k ×_1 A_k1 ... ×_M A_kM)

The example in the docstrings is q and v of all blocks of a ViT-base, 24 weights of 768 × 768: N = 14,155,776 elements,
cut into G = 4 groups of 3,538,944 and folded to M = 3 sides of 153, since 152³ < 3,538,944 ≤ 153³.

    trained, {C, A}      core (4, 1, 4, 4, 4), A1, A2, A3 (4, 1, 153, 4)     group, term, then the axes of the tensor
    expand, combine      (4, 153, 153, 153)                                  C ×_1 A_1 ×_2 A_2 ×_3 A_3, terms summed
    folded               (4, 3538944)                                        flattened and cropped to N_in
    F                    (4, 3538944)                                        N_out
    spliced              24 × (768, 768)                                     groups concatenated, then cut into weights
    multiplied           24 × (768, 768)                                     with the base's weights (`multiply`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from superlora_cli.adapter.activations import no_delta
from superlora_cli.adapter.factors import folded
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.shapes import Bucket, Plan


def deltas(plan: Plan, trained: Mapping[str, Tensor], frozen: Frozen) -> list[Tensor]:
    """ΔW of every target, (rows, columns) each, in model order; differentiable in the trained tensors.

    Args:
        plan: the adapter's shapes.
        trained: its trained tensors, as named and shaped by `plan.tensors`.
        frozen: everything that is not trained, on the device and in the dtype of `trained`.

    Raises:
        UsageError: the update is nonlinear (`activation`), so there is no ΔW.

    Source: Eq. 2, with the projection of Eq. 4.

    >>> from superlora_cli.adapter.config import AdapterConfig
    >>> from superlora_cli.adapter.initial import initial
    >>> from superlora_cli.adapter.layout import plan
    >>> from superlora_cli.adapter.targets import TargetShape
    >>> vit_base = plan(AdapterConfig(groups=4, order=3, rank=4), [TargetShape(f"w{i}", 768, 768) for i in range(24)])
    >>> {name: tuple(tensor.shape) for name, tensor in initial(vit_base).items()}
    {'b0_k1_core': (4, 1, 4, 4, 4), 'b0_k1_A1': (4, 1, 153, 4), 'b0_k1_A2': (4, 1, 153, 4), 'b0_k1_A3': (4, 1, 153, 4)}
    >>> made = deltas(vit_base, initial(vit_base), Frozen(vit_base))
    >>> len(made), made[0].shape, made[0].count_nonzero().item()  # zero at the start
    (24, torch.Size([768, 768]), 0)
    """
    if plan.config.activates:
        raise no_delta(plan.config.activation)
    return frozen.multiplied(made(plan, trained, frozen))


def made(plan: Plan, trained: Mapping[str, Tensor], frozen: Frozen) -> list[Tensor]:
    """What the units make for every target, shaped as `plan.made` says: ΔW, or what `multiply` makes ΔW from."""
    factors = frozen.factors(plan, trained)
    groups = [group_deltas(plan, bucket, factors, frozen) for bucket in plan.buckets]
    return [piece.view(x.rows, x.columns) for piece, x in zip(spliced(plan, groups), plan.made, strict=True)]


def group_deltas(plan: Plan, bucket: Bucket, factors: Mapping[str, Tensor], frozen: Frozen) -> Tensor:
    """ΔW of a bucket's groups from {C, A}: (groups, n_out); in the example (4, 3538944).

    Where no factor can be zero at the start, ΔW is relative to the start: F(x) − F(x₀).
    """
    scale = plan.config.scale
    if frozen.relative:
        moved = frozen.project(bucket, folded(bucket, factors, plan.config)) - frozen.starts[bucket.number]
        return moved * scale if scale != 1 else moved
    return frozen.project(bucket, folded(bucket, factors, plan.config, scale))


def spliced(plan: Plan, groups: Sequence[Tensor]) -> list[Tensor]:
    """The elements (groups, n_out) of all buckets, concatenated in group order and cut into one vector per target.

    A group may end within a weight: the weight then takes elements of both groups.
    """
    if len(groups) == 1:
        return list(_split(groups[0].flatten(), [target.elements for target in plan.made]))
    return _regrouped(plan, groups)


def _regrouped(plan: Plan, groups: Sequence[Tensor]) -> list[Tensor]:
    """With several buckets: each group holds whole targets; groups are taken in the order of the vector."""
    rows = {
        group: row
        for bucket, made in zip(plan.buckets, groups, strict=True)
        for group, row in zip(bucket.members, made.unbind(0), strict=True)
    }
    pieces: list[Tensor] = []
    waiting = list(plan.made)
    for group in sorted(rows):
        sizes: list[int] = []
        while waiting and sum(sizes) < rows[group].numel():
            sizes.append(waiting.pop(0).elements)
        pieces.extend(_split(rows[group], sizes))
    return pieces


def _split(vector: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Consecutive pieces of a vector, the remainder dropped; one graph node in total, not one per piece."""
    rest = vector.numel() - sum(sizes)
    return torch.split(vector, [*sizes, rest] if rest else sizes)[: len(sizes)]
