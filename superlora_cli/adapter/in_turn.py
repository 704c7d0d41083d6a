"""ΔW of many targets one after another, with little memory: for merging into large bases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from superlora_cli.adapter.activations import no_delta
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.delta import group_deltas
from superlora_cli.adapter.factors import folded
from superlora_cli.adapter.from_base import FromBase
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.multiplied import MULTIPLY
from superlora_cli.adapter.shapes import Bucket, Plan

ELEMENTS = 2**20  # of ΔW computed at once

Take = Callable[[int], Tensor]  # n → the next n elements of a vector


def in_turn(plan: Plan, trained: Mapping[str, Tensor], base: FromBase | None = None) -> Take:
    """A function that returns the next n elements of all ΔW, concatenated in the order of the targets, at every call.

    Without gradients and with little memory: it holds the n elements and about `ELEMENTS` more, or ΔW of one group
    under a projection or a Kronecker product, which mix all elements of a group, or of one target with `multiply`.
    `base` is as in `Frozen`.

    Raises:
        UsageError: the update is nonlinear (`activation`), so there is no ΔW.

    >>> from superlora_cli.adapter.config import AdapterConfig
    >>> from superlora_cli.adapter.initial import initial
    >>> from superlora_cli.adapter.layout import TargetShape, plan
    >>> layout = plan(AdapterConfig(order=3, rank=2), [TargetShape("w", 5, 4)])
    >>> take = in_turn(layout, initial(layout))
    >>> take(12).shape, take(8).shape
    (torch.Size([12]), torch.Size([8]))
    """
    if plan.config.activates:
        raise no_delta(plan.config.activation)
    made = _taking(_pieces(plan, {name: tensor.detach() for name, tensor in trained.items()}, base))
    if base is None or not plan.config.multiplies:
        return made
    product = MULTIPLY[plan.config.multiply]
    shapes = zip(plan.made, base.weights, strict=True)
    makings = ((made(x.elements).view(x.rows, x.columns), weight.flatten(1)) for x, weight in shapes)
    return _taking(product.delta(x, weight.to(x)).flatten() for x, weight in makings)


def _taking(pieces: Iterator[Tensor]) -> Take:
    """A function that returns the next n elements of consecutive pieces of a vector."""
    piece = torch.empty(0, device="cpu")

    def take(count: int) -> Tensor:
        nonlocal piece
        taken, missing = [], count
        while missing:
            if not len(piece):
                piece = torch.empty(0, device="cpu")  # frees the last one before the next is computed
                piece = next(pieces)
            taken.append(piece[:missing])
            piece = piece[len(taken[-1]) :]
            missing -= len(taken[-1])
        return taken[0] if len(taken) == 1 else torch.cat(taken)

    return take


def _pieces(plan: Plan, trained: Mapping[str, Tensor], base: FromBase | None) -> Iterator[Tensor]:
    """All ΔW, concatenated, in consecutive pieces: about `ELEMENTS` long, or whole groups where elements are mixed."""
    one = next(iter(trained.values()))
    frozen = Frozen(plan, device=one.device, dtype=one.dtype, base=base, light=True)
    factors = frozen.factors(plan, trained)
    start = frozen.start_factors(plan) if frozen.relative else {}
    config = plan.config
    mixed = config.projects or (config.splits > 1 and config.combine != "hadamard")
    places = [(group, bucket, row) for bucket in plan.buckets for row, group in enumerate(bucket.members)]
    for group, bucket, row in sorted(places, key=lambda place: place[0]):
        names = [unit.name(part) for unit in bucket.units for part in unit.shape.tensors]
        own, before = ({name: made[name][row : row + 1] for name in names if made} for made in (factors, start))
        if not mixed:
            yield from _leading_slices(config, bucket, own, before)
            continue
        one_group = replace(bucket, members=(group,))
        if before:
            frozen.starts = {bucket.number: frozen.project(one_group, folded(one_group, before, config))}
        yield group_deltas(plan, one_group, own, frozen).flatten()


def _leading_slices(
    config: AdapterConfig, bucket: Bucket, own: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> Iterator[Tensor]:
    """ΔW of one group whose elements are not mixed: slices along its leading axis, from the same rows of A_1.

    Where `before` holds the initial {C, A}, ΔW is relative to them.
    """
    shape, scale = bucket.shape, config.scale
    across = math.prod(shape.sides[1:])  # 153 · 153
    step = max(1, ELEMENTS // across)
    for first in range(0, -(-shape.n_out // across), step):
        rows = min(step, shape.sides[0] - first)
        units = tuple(replace(unit, sides=(rows, *unit.sides[1:])) for unit in shape.units)
        part = replace(bucket, shape=replace(shape, units=units, sides=(rows, *shape.sides[1:])))

        def made(tensors: Mapping[str, Tensor], scale: float, part: Bucket = part, first: int = first) -> Tensor:
            tensors, rows = dict(tensors), part.shape.sides[0]
            for unit in part.units:
                name = unit.name("A1" if unit.shape.ranks[0] else "core")  # (1, terms, d_1, ...)
                tensors[name] = tensors[name][:, :, first : first + rows]
            return folded(part, tensors, config, scale)

        slices = (made(own, 1) - made(before, 1)) * scale if before else made(own, scale)
        yield slices.flatten()[: shape.n_out - first * across]
