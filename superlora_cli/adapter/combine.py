"""Linear combinations of updates of any adapter variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Dense, Linear, LowRank


@dataclass(frozen=True)
class Term:
    """One adapter of a sum: its coefficient, its targets, and the update of each."""

    weight: float
    targets: Sequence[Target]
    updates: Sequence[Linear]


def union(terms: Sequence[Term]) -> list[Target]:
    """The targets of all terms in order of appearance; overlapping rows become one target.

    >>> one, two = (Target("qkv", start, start + 4, (4, 3), False) for start in (0, 2))
    >>> [target.name for target in union([Term(1, [one], []), Term(1, [two], [])])]
    ['qkv[0:6]']
    """
    spans: dict[str, list[Target]] = {}
    for term in terms:
        for target in term.targets:
            spans.setdefault(target.module, []).append(target)
    return [target for targets in spans.values() for target in _joined(targets)]


def _joined(targets: Sequence[Target]) -> list[Target]:
    joined: list[Target] = []
    for target in sorted(targets, key=lambda target: target.start):
        last = joined[-1] if joined else None
        if last is None or target.start >= last.stop:
            joined.append(target)
            continue
        stop = max(last.stop, target.stop)
        shape = (stop - last.start, *last.shape[1:])
        joined[-1] = Target(last.module, last.start, stop, shape, last.whole or target.whole)
    return joined


def total(target: Target, terms: Sequence[Term]) -> Linear:
    """Σ weight · ΔW on the rows of `target`: as stacked factors if every term has factors, else as ΔW."""
    found = [
        (term.weight, own.start - target.start, update)
        for term in terms
        for own, update in zip(term.targets, term.updates, strict=True)
        if own.module == target.module and target.start <= own.start < target.stop
    ]
    updates = [update for _, _, update in found if isinstance(update, LowRank)]
    rows, columns = target.flat.rows, target.flat.columns
    if len(updates) == len(found) and sum(update.right.shape[0] for update in updates) <= min(rows, columns):
        lefts = []
        for weight, at, update in found:
            assert isinstance(update, LowRank)
            left = torch.zeros(rows, update.right.shape[0])
            left[at : at + len(update.left)] = weight * update.left
            lefts.append(left)
        return LowRank(torch.cat(lefts, dim=1), torch.cat([update.right for update in updates]))
    whole = torch.zeros(rows, columns)
    for weight, at, update in found:
        delta = update.dense().flatten(1)
        whole[at : at + len(delta)] += weight * delta
    return Dense(whole)


def as_lora(
    updates: Sequence[LowRank], targets: Sequence[Target], *, rank: int
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Low-rank updates as a superlora adapter of `method: lora`: its knobs and its trained tensors by name.

    All weights get rank `rank`; the factors of those of lower rank are padded with zeros.
    """
    config = AdapterConfig.from_knobs("lora", rank=rank)
    shapes = plan(config, [target.flat for target in targets])
    tensors = {name: torch.zeros(shape) for name, shape in shapes.tensors.items()}
    for bucket in shapes.buckets:
        (unit,) = bucket.units
        for row, member in enumerate(bucket.members):
            left, right = updates[member].left, updates[member].right
            tensors[unit.name("A1")][row, 0, :, : left.shape[1]] = left
            tensors[unit.name("A2")][row, 0, :, : left.shape[1]] = right.mT
    return config, tensors
