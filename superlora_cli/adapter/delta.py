"""Parameters become weight updates here, and nowhere else (Eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from superlora_cli.adapter import projections
from superlora_cli.adapter.factors import combine, expand, initial
from superlora_cli.adapter.layout import Bucket, GroupShape, Plan


class Frozen:
    """What is drawn once and never trained: F for every (N_in, N_out), and for a nonlinear F the values F(x₀).

    Made again from the seed wherever it is needed; never stored.
    """

    def __init__(self, plan: Plan, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        config = plan.config
        self.nonlinear = projections.is_nonlinear(config.projection)
        self.maps: dict[tuple[int, int], projections.Project] = {}
        for bucket in plan.buckets:
            size = projections.Size(bucket.shape.n_in, bucket.shape.n_out, config.rescale)
            if (size.n_in, size.n_out) not in self.maps:
                self.maps[size.n_in, size.n_out] = projections.build(
                    config.projection, size, config.seed, device=torch.device(device), dtype=dtype
                )
        self.starts: list[Tensor] = []
        if self.nonlinear:
            start = {name: tensor.to(device, dtype) for name, tensor in initial(plan).items()}
            with torch.no_grad():
                self.starts = [self.project(b.shape, _folded(plan, i, b, start)) for i, b in enumerate(plan.buckets)]

    def project(self, shape: GroupShape, x: Tensor) -> Tensor:
        """F: (groups, n_in) → (groups, n_out)."""
        return self.maps[shape.n_in, shape.n_out](x)


def deltas(plan: Plan, params: Mapping[str, Tensor], frozen: Frozen) -> list[Tensor]:
    """ΔW of every target, (rows, columns) each, in model order; differentiable in `params`.

    Args:
        plan: the adapter's shapes.
        params: its trained tensors, as named and shaped by `plan.tensors`.
        frozen: its projection, on the device and in the dtype of `params`.
    """
    outputs = [_outputs(plan, index, bucket, params, frozen) for index, bucket in enumerate(plan.buckets)]
    if len(outputs) == 1:
        pieces = list(_split(outputs[0].flatten(), [target.elements for target in plan.targets]))
    else:
        pieces = _regroup(plan, outputs)
    return [piece.view(t.rows, t.columns) for piece, t in zip(pieces, plan.targets, strict=True)]


def _outputs(plan: Plan, index: int, bucket: Bucket, params: Mapping[str, Tensor], frozen: Frozen) -> Tensor:
    """One bucket's ΔW: (groups, n_out)."""
    scale = plan.config.scale
    if frozen.nonlinear:
        moved = frozen.project(bucket.shape, _folded(plan, index, bucket, params)) - frozen.starts[index]
        return moved * scale if scale != 1 else moved
    return frozen.project(bucket.shape, _folded(plan, index, bucket, params, scale))


def _folded(plan: Plan, index: int, bucket: Bucket, params: Mapping[str, Tensor], scale: float = 1) -> Tensor:
    """One bucket's units, combined, cropped and flattened, times `scale`: (groups, n_in)."""
    shape, units = bucket.shape, []
    for k, unit in enumerate(shape.units, 1):
        tensors = {name: params[f"b{index}_k{k}_{name}"] for name in unit.tensors}
        if k == 1 and scale != 1:  # the result is linear in each tensor: scale a small one, not N elements
            first = next(iter(tensors))
            tensors[first] = tensors[first] * scale
        units.append(expand(unit, tensors))
    return combine(shape, units, plan.config.combine).flatten(1)[:, : shape.n_in]


def _split(vector: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Consecutive pieces of a vector, what is left over dropped; one node in the graph, not one a piece."""
    rest = vector.numel() - sum(sizes)
    return torch.split(vector, [*sizes, rest] if rest else sizes)[: len(sizes)]


def _regroup(plan: Plan, outputs: list[Tensor]) -> list[Tensor]:
    """Several buckets: their groups, in vector order, hold whole targets each."""
    rows = {
        group: row
        for bucket, output in zip(plan.buckets, outputs, strict=True)
        for group, row in zip(bucket.members, output.unbind(0), strict=True)
    }
    pieces: list[Tensor] = []
    waiting = list(plan.targets)
    for group in sorted(rows):
        sizes: list[int] = []
        while waiting and sum(sizes) < rows[group].numel():
            sizes.append(waiting.pop(0).elements)
        pieces.extend(_split(rows[group], sizes))
    return pieces
