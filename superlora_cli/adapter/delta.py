"""Parameters become weight updates here, and nowhere else (Eq. 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from superlora_cli.adapter import projections
from superlora_cli.adapter.factors import combine, expand, initial
from superlora_cli.adapter.layout import Bucket, GroupShape, Plan


class Frozen:
    """What is drawn once and never trained: F for every (N_in, N_out), and for a nonlinear F the values F(x₀).

    Made again from the seed wherever it is needed; never stored.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        start: bool = True,
    ) -> None:
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
        if self.nonlinear and start:
            values = {name: tensor.to(device, dtype) for name, tensor in initial(plan).items()}
            with torch.no_grad():
                self.starts = [self.project(b.shape, _folded(plan, i, b, values)) for i, b in enumerate(plan.buckets)]

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


def deltas_in_turn(plan: Plan, params: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """ΔW of one target after the other, as `deltas` gives all of them: without gradients, and in little memory.

    A group is made when its first weight is asked for. What is held is one group's ΔW, and of a weight that it shares
    with the group before, the part that lay there; the caller lets a ΔW go before it asks for the next.
    """
    groups = _groups_in_turn(plan, params)
    ahead = torch.empty(0)  # of the last group made: what no target has had yet
    for target in plan.targets:
        own, ahead = ahead[: target.elements], ahead[target.elements :]
        while missing := target.elements - len(own):
            own, ahead = own.clone(), torch.empty(0)  # lets that group go before the next is made
            ahead = next(groups)
            own, ahead = torch.cat([own, ahead[:missing]]) if len(own) else ahead[:missing], ahead[missing:]
        yield own.view(target.rows, target.columns)


def _groups_in_turn(plan: Plan, params: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """ΔW of one group after the other, in vector order: (n_out,)."""
    params = {name: tensor.detach() for name, tensor in params.items()}
    one = next(iter(params.values()))
    frozen = Frozen(plan, device=one.device, dtype=one.dtype, start=False)
    start = {name: tensor.to(one) for name, tensor in initial(plan).items()} if frozen.nonlinear else {}
    places = [(group, index, row) for index, b in enumerate(plan.buckets) for row, group in enumerate(b.members)]
    for _, index, row in sorted(places):
        bucket = plan.buckets[index]
        if start:
            frozen.starts = [frozen.project(bucket.shape, _folded(plan, index, bucket, start, row=row))]
        yield _outputs(plan, index, bucket, params, frozen, row=row).flatten()


def _outputs(
    plan: Plan, index: int, bucket: Bucket, params: Mapping[str, Tensor], frozen: Frozen, row: int | None = None
) -> Tensor:
    """One bucket's ΔW: (groups, n_out); of its group number `row` alone, (1, n_out)."""
    scale = plan.config.scale
    if frozen.nonlinear:
        start = frozen.starts[index if row is None else 0]
        moved = frozen.project(bucket.shape, _folded(plan, index, bucket, params, row=row)) - start
        return moved * scale if scale != 1 else moved
    return frozen.project(bucket.shape, _folded(plan, index, bucket, params, scale, row))


def _folded(
    plan: Plan, index: int, bucket: Bucket, params: Mapping[str, Tensor], scale: float = 1, row: int | None = None
) -> Tensor:
    """One bucket's units, combined, cropped and flattened, times `scale`: (groups, n_in)."""
    shape, units = bucket.shape, []
    rows = slice(None) if row is None else slice(row, row + 1)
    for k, unit in enumerate(shape.units, 1):
        tensors = {name: params[f"b{index}_k{k}_{name}"][rows] for name in unit.tensors}
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
