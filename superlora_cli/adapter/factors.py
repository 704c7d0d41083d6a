"""From factors to the tensor of a group: units C ×_1 A_1 ... ×_M A_M, and their products."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.shapes import Bucket, GroupShape, UnitShape


def expand(unit: UnitShape, tensors: Mapping[str, Tensor]) -> Tensor:
    """A unit's tensor from its factors, batched: (*b, d_1, ..., d_M).

    Args:
        unit: the shapes.
        tensors: `core` (*b, r_1, ..., r_M) if stored, and `A1` ... `AM`, each (*b, d_m, r_m).

    Source: Eq. 3.

    >>> import torch
    >>> unit = UnitShape(sides=(153, 153, 153), ranks=(4, 4, 4), core="dense")
    >>> expand(unit, {name: torch.ones(2, 1, *shape) for name, shape in unit.tensors.items()}).shape
    torch.Size([2, 1, 153, 153, 153])
    """
    return tensors["core"] if unit.is_dense else CORES[unit.core].expand(unit, tensors)


def combine(shape: GroupShape, units: list[Tensor], how: str) -> Tensor:
    """K unit tensors (groups, terms, d_1, ..., d_M) -> the group's tensor (groups, *shape.extent), terms summed.

    Kronecker products are taken axis by axis (Eq. 2) and cropped where the layout says so; `hadamard` multiplies
    elementwise (LoHa).

    >>> import torch
    >>> left, right = UnitShape((8, 8), (0, 0), "dense"), UnitShape((96, 96), (0, 0), "dense")
    >>> shape = GroupShape((left, right), terms=1, sides=(768, 768), crop=True, n_in=589824, n_out=589824)
    >>> combine(shape, [torch.ones(24, 1, 8, 8), torch.ones(24, 1, 96, 96)], "kronecker").shape
    torch.Size([24, 768, 768])
    """
    if how == "hadamard":
        product = units[0]
        for unit in units[1:]:
            product = product * unit
        return product.sum(1)
    right = units[-1]
    if len(units) == 1:
        return right.sum(1) if shape.terms > 1 else right.squeeze(1)
    order = len(shape.sides)
    for unit in units[-2:0:-1]:
        right = _interleave(unit.flatten(2).unsqueeze(-1) * right.flatten(2).unsqueeze(-2), unit, right, order)
    left = units[0]
    # Σ over terms is the inner axis of one product: (g, f^M, t) @ (g, t, d^M) -> (g, f^M, d^M)
    whole = _interleave(left.flatten(2).mT @ right.flatten(2), left, right, order)
    return whole[(slice(None), *(slice(side) for side in shape.extent))]


def _interleave(product: Tensor, left: Tensor, right: Tensor, order: int) -> Tensor:
    """All pairwise products (*b, ∏ f_m, ∏ d_m) -> Kronecker order (*b, f_1·d_1, ..., f_M·d_M)."""
    batch, fs, ds = product.shape[:-2], left.shape[-order:], right.shape[-order:]
    b = len(batch)
    axes = [*range(b), *(axis for m in range(order) for axis in (b + m, b + order + m))]
    return (
        product.reshape(*batch, *fs, *ds).permute(axes).reshape(*batch, *(f * d for f, d in zip(fs, ds, strict=True)))
    )


def folded(bucket: Bucket, factors: Mapping[str, Tensor], config: AdapterConfig, scale: float = 1) -> Tensor:
    """A bucket's units, combined, flattened and cropped, times `scale`: the input of F, (groups, n_in).

    >>> import torch
    >>> from superlora_cli.adapter.layout import plan
    >>> from superlora_cli.adapter.targets import TargetShape
    >>> config = AdapterConfig(groups=4, order=3, rank=4)
    >>> (bucket,) = plan(config, [TargetShape(f"w{i}", 768, 768) for i in range(24)]).buckets
    >>> folded(bucket, {name: torch.ones(shape) for name, shape in bucket.tensors.items()}, config).shape
    torch.Size([4, 3538944])
    """
    units = []
    for unit in bucket.units:
        own = unit.of(factors)
        if unit.k == 1 and scale != 1:  # the result is linear in each tensor: scale a small one, not N elements
            first = next(iter(own))
            own[first] = own[first] * scale
        units.append(expand(unit.shape, own))
    return combine(bucket.shape, units, config.combine).flatten(1)[:, : bucket.shape.n_in]
