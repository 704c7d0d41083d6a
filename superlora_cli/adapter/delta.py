"""Parameters become weight updates here, and nowhere else (Eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from superlora_cli.adapter import projections
from superlora_cli.adapter.factors import combine, expand, initial
from superlora_cli.adapter.layout import Bucket, GroupShape, Plan

ELEMENTS = 2**20  # of ΔW made at once where only some are wanted


class Frozen:
    """What is drawn once and never trained: F for every (N_in, N_out), and for a nonlinear F the values F(x₀).

    Made again from the seed wherever it is needed; never stored. Without `start`, F(x₀) is left to the caller.
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
        self.starts: dict[int, Tensor] = {}  # by bucket
        if self.nonlinear and start:
            values = {name: tensor.to(device, dtype) for name, tensor in initial(plan).items()}
            with torch.no_grad():
                for index, bucket in enumerate(plan.buckets):
                    self.starts[index] = self.project(bucket.shape, _folded(plan, index, bucket, values))

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


Take = Callable[[int], Tensor]  # n → the next n elements of a vector


def in_turn(plan: Plan, params: Mapping[str, Tensor]) -> Take:
    """What gives the vector of all ΔW, target after target, as many elements as one asks for at a time.

    Without gradients, and in little memory: held is what one asks for and some `ELEMENTS`; under a projection or a
    Kronecker product, which mix all elements of a group, ΔW of one group.

    >>> from superlora_cli.adapter.config import AdapterConfig
    >>> from superlora_cli.adapter.layout import TargetShape, plan
    >>> layout = plan(AdapterConfig(order=3, rank=2), [TargetShape("w", 5, 4)])
    >>> take = in_turn(layout, initial(layout))
    >>> take(12).shape, take(8).shape
    (torch.Size([12]), torch.Size([8]))
    """
    pieces = _pieces(plan, {name: tensor.detach() for name, tensor in params.items()})
    piece = torch.empty(0)

    def take(count: int) -> Tensor:
        nonlocal piece
        taken, missing = [], count
        while missing:
            if not len(piece):
                piece = torch.empty(0)  # lets the last one go before the next is made
                piece = next(pieces)
            taken.append(piece[:missing])
            piece = piece[len(taken[-1]) :]
            missing -= len(taken[-1])
        return taken[0] if len(taken) == 1 else torch.cat(taken)

    return take


def _pieces(plan: Plan, params: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The vector of all ΔW, in consecutive pieces: about `ELEMENTS` long, or where they are mixed whole groups."""
    one = next(iter(params.values()))
    frozen = Frozen(plan, device=one.device, dtype=one.dtype, start=False)
    start = {name: tensor.to(one) for name, tensor in initial(plan).items()} if frozen.nonlinear else {}
    mixed = plan.config.projection != "identity" or (plan.config.splits > 1 and plan.config.combine != "hadamard")
    places = [(group, index, row) for index, b in enumerate(plan.buckets) for row, group in enumerate(b.members)]
    for _, index, row in sorted(places):
        bucket = plan.buckets[index]
        own = {name: params[name][row : row + 1] for name in bucket.tensors(index)}
        if not mixed:
            yield from _leading_slices(plan, index, bucket, own)
            continue
        if start:
            before = {name: start[name][row : row + 1] for name in own}
            frozen.starts = {index: frozen.project(bucket.shape, _folded(plan, index, bucket, before))}
        yield _outputs(plan, index, bucket, own, frozen).flatten()


def _leading_slices(plan: Plan, index: int, bucket: Bucket, own: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """ΔW of one group whose elements are not mixed: slices of its leading axis, from those rows of A_1."""
    shape = bucket.shape
    across = math.prod(shape.sides[1:])  # 153 · 153
    step = max(1, ELEMENTS // across)
    for first in range(0, -(-shape.n_out // across), step):
        rows = min(step, shape.sides[0] - first)
        units = tuple(replace(unit, sides=(rows, *unit.sides[1:])) for unit in shape.units)
        part = replace(shape, units=units, sides=(rows, *shape.sides[1:]))
        tensors = dict(own)
        for k, unit in enumerate(shape.units, 1):
            name = f"b{index}_k{k}_{'A1' if unit.ranks[0] else 'core'}"  # (1, terms, d_1, ...)
            tensors[name] = own[name][:, :, first : first + rows]
        made = _folded(plan, index, replace(bucket, shape=part), tensors, plan.config.scale)
        yield made.flatten()[: shape.n_out - first * across]


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
