"""Given updates as an adapter that has exactly them: the knobs, and the trained tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from superlora_cli.adapter.combine import as_lora
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Form, Hadamard, Kronecker, LowRank, smaller

Knobs = dict[str, Any]  # including `method`
Made = tuple[Knobs, dict[str, Tensor]]


def as_adapter(forms: Sequence[Form], targets: Sequence[Target]) -> Made:
    """LoKr, LoHa or LoRA if every update is one or, for LoRA, smaller as one; else dense.

    An adapter has one rank; factors of a lower one are filled up with zeros.
    """
    krona = [form for form in forms if isinstance(form, Kronecker)]
    if len(krona) == len(forms) and (made := _as_lokr(krona, targets)):
        return made
    side = min(min(target.flat.rows, target.flat.columns) for target in targets)
    loha = [form for form in forms if isinstance(form, Hadamard)]
    if len(loha) == len(forms):
        rank = max(part.right.shape[0] for form in loha for part in (form.left, form.right))
        if rank <= side:
            values = [
                {(k, part): value for k, own in ((1, form.left), (2, form.right)) for part, value in _planes(own)}
                for form in loha
            ]
            return _filled({"method": "loha", "rank": rank}, targets, values)
    plain = [smaller(form) if isinstance(form, Kronecker) else form for form in forms]
    lora = [form for form in plain if isinstance(form, LowRank)]
    if len(lora) == len(forms) and (rank := max(form.right.shape[0] for form in lora)) <= side:
        return {"method": "lora", "rank": rank}, as_lora(lora, targets, rank=rank)[1]
    dense = [{(1, "core"): form.dense().flatten()} for form in forms]
    return _filled({"method": "dense"}, targets, dense)


def _as_lokr(forms: Sequence[Kronecker], targets: Sequence[Target]) -> Made | None:
    """None if their first factors are not square and of one size, or a product is cropped."""
    f = forms[0].left.shape[-1]
    for form, target in zip(forms, targets, strict=True):
        sides = form.out.shape[1], form.out.shape[2] if form.into is None else form.into.shape[1]
        if form.left.shape != (1, f, f) or (f * sides[0], f * sides[1]) != (target.flat.rows, target.flat.columns):
            return None
    side = min(min(target.flat.rows, target.flat.columns) for target in targets) // f
    ranks = [None if form.into is None else form.into.shape[-1] for form in forms]
    knobs: Knobs = {"method": "krona", "split_dim": f}
    values: list[dict[tuple[int, str], Tensor]] = []
    low = [rank for rank in ranks if rank is not None]
    if len(low) == len(forms) and max(low) <= side:
        knobs = {"method": "lokr", "split_dim": f, "rank": max(low)}
    for form in forms:
        own = {(1, "core"): form.left[0]}
        if knobs["method"] == "lokr":
            assert form.into is not None
            own |= {(2, "A1"): form.out[0], (2, "A2"): form.into[0]}
        else:
            own[2, "core"] = form.out[0] if form.into is None else form.out[0] @ form.into[0].mT
        values.append(own)
    return _filled(knobs, targets, values)


def _planes(update: LowRank) -> tuple[tuple[str, Tensor], ...]:
    return ("A1", update.left), ("A2", update.right.mT)


def _filled(knobs: Knobs, targets: Sequence[Target], values: Sequence[Mapping[tuple[int, str], Tensor]]) -> Made:
    """An adapter of one unit a weight, from the values of each: (number of the factor, part) → tensor."""
    config = AdapterConfig.from_knobs(knobs["method"], **{key: knobs[key] for key in knobs if key != "method"})
    shapes = plan(config, [target.flat for target in targets])
    tensors = {name: torch.zeros(shape) for name, shape in shapes.tensors.items()}
    for bucket in shapes.buckets:
        for unit in bucket.units:
            for row, member in enumerate(bucket.members):
                for part in unit.trained:
                    value = values[member][unit.k, part]
                    tensors[unit.name(part)][row, 0][tuple(slice(size) for size in value.shape)] = value
    return knobs, tensors
