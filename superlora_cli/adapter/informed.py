"""Starts an adapter from the first batches; ΔW is still 0.

With `init: gradient` its factors start from the first gradients of the weights. Each group's gradient is folded like
ΔW. The plane A_m starts as the leading singular vectors of its unfolding along mode m, and a dense core as the gradient
in the coordinates of all planes: the higher-order SVD, for a matrix the SVD (LoRA-GA, LoRA-One). The factor that starts
at zero still does, so the first step moves it to where it lowers the loss most.

An F that places numbers by gradients gets the positions of each group.

With `init: activations` A_2 of a weight starts as the principal components of its layer's inputs (EVA).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from superlora_cli.adapter.from_base import padded
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.gradients import Average, gradients
from superlora_cli.adapter.initial import start_scale
from superlora_cli.adapter.inputs import covariances
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.projections import PROJECTIONS
from superlora_cli.adapter.shapes import Bucket, Plan
from superlora_cli.adapter.svd import folded, singular
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.errors import RunError

HELD = 2**28  # elements of gradients, or covariances, that are held at once; of one group where these are more

Group = tuple[Bucket, int]


def inform(
    model: nn.Module, adapter: SuperLora, passes: Callable[[], object], *, average: Average | None = None
) -> None:
    """Give the active `adapter` of `model` the start, or the positions, that some batches say.

    What no batch reaches, such as a rare expert, keeps its start. Gradients are taken from a part of the weights at a
    time, so that never more than `HELD` elements are held. No gradient remains afterwards.

    Args:
        passes: runs forward and backward passes over the same batches at every call, one for each part; for activations
            forward passes are enough.
        average: replaces a tensor by its mean over all processes that train together.

    Raises:
        RunError: there are no gradients or inputs, all are zero, or they are not finite.
    """
    some = False

    def run() -> None:
        with adapter.starting():
            passes()

    if adapter.config.informed == "activations":
        for part in _parts(adapter.plan, lambda target: target.columns**2):
            targets = [adapter.targets[group] for _, group in part]
            for (bucket, group), covariance in zip(part, covariances(model, targets, run, average), strict=True):
                if covariance is not None:
                    some = True
                    _start_plane(adapter, bucket, bucket.members.index(group), covariance)
        if not some:
            hint = "pass some batches through the model"
            raise RunError("the layers of all targets got no inputs", where="adapter", hint=hint)
        return
    for part in _parts(adapter.plan, lambda target: target.elements):
        for (bucket, group), gradient in _of_groups(model, adapter, part, passes, average):
            row, some = bucket.members.index(group), some or bool(gradient.any())
            if adapter.config.places:
                choose = PROJECTIONS[adapter.config.projection].choose
                adapter.positions[bucket.positions][row] = choose(gradient, bucket.shape.n_in)
            elif gradient.any():  # else it keeps its start
                _start(adapter, bucket, row, folded(bucket, gradient))
    if not some:
        hint = "has a new head weights of zero? Give it random ones, or use another start or projection"
        raise RunError("the first gradients of all target weights are zero", where="adapter", hint=hint)


def _parts(plan: Plan, held: Callable[[TargetShape], int]) -> Iterator[list[Group]]:
    """All groups in the order of the vector, in as few runs as `HELD` allows, where each target needs `held`."""
    part: list[Group] = []
    of = {group: bucket for bucket in plan.buckets for group in bucket.members}
    for group in sorted(of):
        longer = [*part, (of[group], group)]
        if part and sum(held(plan.targets[index]) for index in _touched(plan, longer)) > HELD:
            yield part
            longer = longer[-1:]
        part = longer
    yield part


def _touched(plan: Plan, part: Sequence[Group]) -> range:
    """The targets with elements in any of these groups, which follow each other."""
    (_, first), (bucket, last) = part[0], part[-1]
    ends, end = [], 0
    for x in plan.made:
        end += x.elements
        ends.append(end)
    before = sum(end <= plan.starts[first] for end in ends)
    return range(before, 1 + sum(end < plan.starts[last] + bucket.shape.n_out for end in ends[:-1]))


def _of_groups(
    model: nn.Module,
    adapter: SuperLora,
    part: Sequence[Group],
    passes: Callable[[], object],
    average: Average | None,
) -> Iterator[tuple[Group, Tensor]]:
    """The gradient of every group on the CPU, (n_out,), zero where its elements belong to no weight."""
    plan, touched = adapter.plan, _touched(adapter.plan, part)
    with torch.no_grad():
        frozen = adapter.not_trained()
    found = gradients(model, [adapter.targets[index] for index in touched], passes, average)
    found = [_of_made(plan, frozen, index, gradient) for index, gradient in zip(touched, found, strict=True)]
    before = sum(x.elements for x in plan.made[: touched.start])
    vector = torch.cat([gradient.flatten().cpu() for gradient in found])
    del found
    for bucket, group in part:
        yield (bucket, group), padded(vector[plan.starts[group] - before :], bucket.shape.n_out)


def _of_made(plan: Plan, frozen: Frozen, index: int, gradient: Tensor) -> Tensor:
    """The gradient of what the units make for a target, from that of ΔW."""
    if not frozen.product.takes_weight:
        return gradient
    x = plan.made[index]
    at = gradient.new_zeros(x.rows, x.columns).requires_grad_()
    (found,) = torch.autograd.grad(frozen.product.delta(at, frozen.weights[index].to(gradient)), at, gradient)
    return found


@torch.no_grad()
def _start(adapter: SuperLora, bucket: Bucket, row: int, gradient: Tensor) -> None:
    """Set the factors of one group that start from its folded gradient, at their usual scale."""
    (own,), values = bucket.units, {}
    shape, core, informed = own.shape, gradient, own.shape.informed
    for m, (side, rank) in enumerate(zip(shape.sides, shape.ranks, strict=True), 1):
        part = f"A{m}"
        if part in informed or (rank and "core" in informed):
            if part in shape.frozen:
                plane = adapter.all_factors()[own.name(part)][row, 0].to(gradient)  # (d, r)
            else:
                plane = singular(gradient.movedim(m - 1, 0).reshape(side, -1), rank, scaled=False)
            if part in informed:
                values[part] = plane * math.sqrt(side)
            core = torch.tensordot(core, plane, dims=([0], [0]))  # the next axis leads, r is appended
        else:
            core = core.movedim(0, -1)
    if "core" in informed:
        values["core"] = core * (start_scale(shape, "core") / core.square().mean().sqrt())
    for part, value in values.items():
        adapter.factors[own.name(part)][row, 0] = value.to(adapter.factors[own.name(part)])


@torch.no_grad()
def _start_plane(adapter: SuperLora, bucket: Bucket, row: int, covariance: Tensor) -> None:
    """Set A_2 of one weight to the principal components of its layer's inputs."""
    (own,) = bucket.units
    side, rank = own.shape.sides[1], own.shape.ranks[1]
    plane = adapter.factors[own.name("A2")]
    plane[row, 0] = (singular(covariance, rank, scaled=False) * math.sqrt(side)).to(plane)
