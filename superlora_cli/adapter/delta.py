"""Parameters become weight updates here, and nowhere else (Eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from superlora_cli.adapter import projections
from superlora_cli.adapter.factors import combine, expand, initial, relative
from superlora_cli.adapter.inner import InnerMaps, factors
from superlora_cli.adapter.shapes import Bucket, GroupShape, Plan

ELEMENTS = 2**20  # of ΔW made at once where only some are wanted


class Frozen:
    """What is never trained: F for every size, F_in and the frozen factors, and F(x₀) where ΔW is relative to it.

    Made again wherever it is needed, from the seed and, with `frozen: svd`, from the base; never stored.

    Args:
        plan: the adapter's shapes.
        base: the frozen factors that come from the base, as `svd.planes` gives them.
        start: whether F(x₀) is made.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        base: Mapping[str, Tensor] | None = None,
        start: bool = True,
    ) -> None:
        config = plan.config
        device = torch.device(device)
        self.device, self.dtype = device, dtype
        self.relative = relative(plan)
        self.inner = InnerMaps(plan, base, device=device, dtype=dtype)
        self.maps: dict[tuple[object, ...], projections.Project] = {}
        for shape in (bucket.shape for bucket in plan.buckets):
            size = projections.Size(shape.n_in, shape.n_out, config.rescale, shape.grid)
            if (shape.n_in, shape.n_out, shape.grid) not in self.maps:
                self.maps[shape.n_in, shape.n_out, shape.grid] = projections.build(
                    config.projection, size, config.seed, device=device, dtype=dtype
                )
        self.starts: dict[int, Tensor] = {}  # by bucket
        if self.relative and start:
            values = self.factors(plan, {name: tensor.to(device, dtype) for name, tensor in initial(plan).items()})
            with torch.no_grad():
                for index, bucket in enumerate(plan.buckets):
                    self.starts[index] = self.project(bucket.shape, _folded(plan, index, bucket, values))

    def factors(self, plan: Plan, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{C, A} from what is trained, as `inner.factors`."""
        return factors(plan, params, self.inner)

    def project(self, shape: GroupShape, x: Tensor) -> Tensor:
        """F: (groups, n_in) → (groups, n_out)."""
        return self.maps[shape.n_in, shape.n_out, shape.grid](x)


def deltas(plan: Plan, params: Mapping[str, Tensor], frozen: Frozen) -> list[Tensor]:
    """ΔW of every target, (rows, columns) each, in model order; differentiable in `params`.

    Args:
        plan: the adapter's shapes.
        params: its trained tensors, as named and shaped by `plan.tensors`.
        frozen: what is not trained, on the device and in the dtype of `params`.
    """
    params = frozen.factors(plan, params)
    outputs = [_outputs(plan, index, bucket, params, frozen) for index, bucket in enumerate(plan.buckets)]
    if len(outputs) == 1:
        pieces = list(_split(outputs[0].flatten(), [target.elements for target in plan.targets]))
    else:
        pieces = _regroup(plan, outputs)
    return [piece.view(t.rows, t.columns) for piece, t in zip(pieces, plan.targets, strict=True)]


Take = Callable[[int], Tensor]  # n → the next n elements of a vector


def in_turn(plan: Plan, params: Mapping[str, Tensor], base: Mapping[str, Tensor] | None = None) -> Take:
    """What gives the vector of all ΔW, target after target, as many elements as one asks for at a time.

    Without gradients, and in little memory: held is what one asks for and some `ELEMENTS`; under a projection or a
    Kronecker product, which mix all elements of a group, ΔW of one group. `base` is as `Frozen` takes it.

    >>> from superlora_cli.adapter.config import AdapterConfig
    >>> from superlora_cli.adapter.layout import TargetShape, plan
    >>> layout = plan(AdapterConfig(order=3, rank=2), [TargetShape("w", 5, 4)])
    >>> take = in_turn(layout, initial(layout))
    >>> take(12).shape, take(8).shape
    (torch.Size([12]), torch.Size([8]))
    """
    pieces = _pieces(plan, {name: tensor.detach() for name, tensor in params.items()}, base)
    piece = torch.empty(0, device="cpu")

    def take(count: int) -> Tensor:
        nonlocal piece
        taken, missing = [], count
        while missing:
            if not len(piece):
                piece = torch.empty(0, device="cpu")  # lets the last one go before the next is made
                piece = next(pieces)
            taken.append(piece[:missing])
            piece = piece[len(taken[-1]) :]
            missing -= len(taken[-1])
        return taken[0] if len(taken) == 1 else torch.cat(taken)

    return take


def _pieces(plan: Plan, params: Mapping[str, Tensor], base: Mapping[str, Tensor] | None) -> Iterator[Tensor]:
    """The vector of all ΔW, in consecutive pieces: about `ELEMENTS` long, or where they are mixed whole groups."""
    one = next(iter(params.values()))
    frozen = Frozen(plan, device=one.device, dtype=one.dtype, base=base, start=False)
    params, start = frozen.factors(plan, params), {}
    if frozen.relative:
        start = frozen.factors(plan, {name: tensor.to(one) for name, tensor in initial(plan).items()})
    mixed = plan.config.projection != "identity" or (plan.config.splits > 1 and plan.config.combine != "hadamard")
    places = [(group, index, row) for index, b in enumerate(plan.buckets) for row, group in enumerate(b.members)]
    for _, index, row in sorted(places):
        bucket = plan.buckets[index]
        own, before = (
            {name: made[name][row : row + 1] for name in made if name.startswith(f"b{index}_")}
            for made in (params, start)
        )
        if not mixed:
            yield from _leading_slices(plan, index, bucket, own, before)
            continue
        if before:
            frozen.starts = {index: frozen.project(bucket.shape, _folded(plan, index, bucket, before))}
        yield _outputs(plan, index, bucket, own, frozen).flatten()


def _leading_slices(
    plan: Plan, index: int, bucket: Bucket, own: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> Iterator[Tensor]:
    """ΔW of one group whose elements are not mixed: slices of its leading axis, from those rows of A_1.

    With the {C, A} that it starts from in `before`, ΔW is relative to them.
    """
    shape, scale = bucket.shape, plan.config.scale
    across = math.prod(shape.sides[1:])  # 153 · 153
    step = max(1, ELEMENTS // across)
    for first in range(0, -(-shape.n_out // across), step):
        rows = min(step, shape.sides[0] - first)
        units = tuple(replace(unit, sides=(rows, *unit.sides[1:])) for unit in shape.units)
        part = replace(bucket, shape=replace(shape, units=units, sides=(rows, *shape.sides[1:])))

        def made(tensors: Mapping[str, Tensor], scale: float, part: Bucket = part, first: int = first) -> Tensor:
            tensors, rows = dict(tensors), part.shape.sides[0]
            for k, unit in enumerate(part.shape.units, 1):
                name = f"b{index}_k{k}_{'A1' if unit.ranks[0] else 'core'}"  # (1, terms, d_1, ...)
                tensors[name] = tensors[name][:, :, first : first + rows]
            return _folded(plan, index, part, tensors, scale)

        slices = (made(own, 1) - made(before, 1)) * scale if before else made(own, scale)
        yield slices.flatten()[: shape.n_out - first * across]


def _outputs(plan: Plan, index: int, bucket: Bucket, params: Mapping[str, Tensor], frozen: Frozen) -> Tensor:
    """One bucket's ΔW from {C, A}: (groups, n_out)."""
    scale = plan.config.scale
    if frozen.relative:
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
