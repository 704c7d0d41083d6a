"""The targets in a few groups of layers that can be trained one after another (Local LoRA): which rows of which tensor.

A unit that spans two groups of layers would be trained in both, so layers are only separated where a unit begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from superlora_cli.adapter.shapes import THETA, Plan
from superlora_cli.errors import UsageError

KEY = "train.local"


class Stage(NamedTuple):
    """What is trained at a time.

    Attributes:
        targets: indices of its targets.
        layers: the names of its layers.
        rows: (name of a trained tensor, its first row, its last + 1): one row for each unit.
    """

    targets: range
    layers: tuple[str, ...]
    rows: tuple[tuple[str, int, int], ...]


def stages(plan: Plan, count: int) -> list[Stage]:
    """The targets in `count` stages of about as many layers, from the first layer to the last.

    Raises:
        UsageError: units or θ belong to several of them, or there is no such number of layers.

    >>> from superlora_cli.adapter.config import AdapterConfig
    >>> from superlora_cli.adapter.layout import TargetShape, plan
    >>> targets = [TargetShape(f"blocks.{i}.fc", 9, 9, f"blocks.{i}") for i in (0, 1, 2)]
    >>> made = plan(AdapterConfig.from_knobs("lora"), targets)
    >>> for stage in stages(made, 2):
    ...     print(stage.layers, [(first, stop) for _, first, stop in stage.rows])
    ('blocks.0',) [(0, 1), (0, 1)]
    ('blocks.1', 'blocks.2') [(1, 3), (1, 3)]
    """
    inner = plan.config.inner
    if inner is not None and inner.per == "all":
        raise UsageError("one θ makes the factors of all layers", where=KEY, hint="adapter.inner.per: group")
    parts = list(_parts(plan))
    if len(parts) < count:
        layers = sum(len(own) for own, _, _ in parts)
        shared = f", which share units so that they make {len(parts)}" if layers > len(parts) else ""
        hint = f"at most {layers}" + (", and adapter.groups: weight or layer" if shared else "")
        raise UsageError(f"{count} groups of {layers} layers{shared}", where=f"{KEY}.groups", hint=hint)
    found = []
    for index in range(count):
        own = parts[index * len(parts) // count : (index + 1) * len(parts) // count]
        targets = range(own[0][1].start, own[-1][1].stop)
        groups = range(own[0][2].start, own[-1][2].stop)
        found.append(Stage(targets, tuple(name for names, _, _ in own for name in names), tuple(_rows(plan, groups))))
    return found


def _parts(plan: Plan) -> Iterator[tuple[tuple[str, ...], range, range]]:
    """(layers, targets, groups) of the smallest runs of whole layers that hold whole units."""
    names: list[str] = []
    starts, at, first_target, first_group = (*plan.starts, plan.elements), 0, 0, 0
    numbered = enumerate(zip(plan.targets, plan.made, strict=True))
    for name, own in groupby(numbered, key=lambda each: each[1][0].layer or each[1][0].name):
        members = list(own)
        names.append(name)
        at += sum(made.elements for _, (_, made) in members)
        stop = members[-1][0] + 1
        if at in starts:
            group = starts.index(at)
            yield tuple(names), range(first_target, stop), range(first_group, group)
            names, first_target, first_group = [], stop, group


def _rows(plan: Plan, groups: range) -> Iterator[tuple[str, int, int]]:
    """The rows of the trained tensors that belong to a run of groups."""
    for bucket in plan.buckets:
        own = [row for row, group in enumerate(bucket.members) if group in groups]
        if own and plan.pieces:
            for piece in plan.pieces:
                if piece.tensors.keys() <= bucket.tensors.keys():
                    yield THETA, piece.start + own[0], piece.start + own[-1] + 1
        elif own:
            yield from ((name, own[0], own[-1] + 1) for name in bucket.tensors)
