"""The update of one weight as LyCORIS stores it: tensors whose names follow the module's key.

    LoRA    lora_up.weight (out, r), lora_down.weight (r, in), alpha       ΔW = up · down · alpha / r
    LoHa    hada_w1_a (out, r), hada_w1_b (r, in), hada_w2_a, hada_w2_b, alpha       ΔW = (w1_a w1_b) ⊙ (w2_a w2_b)
    LoKr    lokr_w1 (f, f), lokr_w2 (d, e) or lokr_w2_a (d, r), lokr_w2_b (r, e), alpha       ΔW = w1 ⊗ w2
    ΔW      diff

Every scale is in the first factor, and alpha is the rank: loaders differ in when they multiply by alpha / r.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from superlora_cli.adapter.updates import Dense, Form, Hadamard, Kronecker, LowRank

Tensors = dict[str, Tensor]
LORA, LOHA, LOKR, DIFF = "lora", "loha", "lokr", "diff"


def stored(form: Form, shape: Sequence[int], *, dotted: bool) -> tuple[str, int | None, Tensors]:
    """The kind of an update, its rank if it has one, and its tensors.

    Args:
        form: a Kronecker product that LyCORIS cannot load is written as LoRA or ΔW, whichever is smaller.
        shape: of the whole weight, (out, in) or (out, in, kh, kw).
        dotted: whether keys have dots, as in diffusers, whose names for LoRA are then used.
    """
    if isinstance(form, Kronecker) and not _loadable(form, shape):
        form = smaller(form)
    if isinstance(form, LowRank):
        return LORA, form.right.shape[0], _lora(form, shape, dotted)
    if isinstance(form, Hadamard):
        one, other = form.left, form.right
        pairs = {"hada_w1_a": one.left, "hada_w1_b": one.right, "hada_w2_a": other.left, "hada_w2_b": other.right}
        return LOHA, one.right.shape[0], {**pairs, "alpha": _number(one.right.shape[0])}
    if isinstance(form, Kronecker):
        return LOKR, *_lokr(form, shape)
    return DIFF, None, {"diff": form.delta.reshape(tuple(shape))}


def _lora(form: LowRank, shape: Sequence[int], dotted: bool) -> Tensors:
    rank = form.right.shape[0]
    up = form.left.reshape(shape[0], rank, *(1 for _ in shape[2:]))
    down = form.right.reshape(rank, *shape[1:])
    if dotted:
        return {"lora_A.weight": down, "lora_B.weight": up}
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": _number(rank)}


def _lokr(form: Kronecker, shape: Sequence[int]) -> tuple[int | None, Tensors]:
    """LyCORIS takes factors of w2 if their rank is less than half of its longer side."""
    left, kernel = form.left[0], tuple(shape[2:])
    rows, columns = shape[0] // len(left), shape[1] // left.shape[1]
    rank = None if form.into is None else form.into.shape[-1]
    if rank is None or form.into is None or 2 * rank >= max(rows, columns):
        right = form.out[0] if form.into is None else form.out[0] @ form.into[0].mT
        return None, {"lokr_w1": left, "lokr_w2": right.reshape(rows, columns, *kernel), "alpha": _number(1)}
    halves = {"lokr_w2_a": form.out[0], "lokr_w2_b": form.into[0].mT}
    return rank, {"lokr_w1": left, **halves, "alpha": _number(rank)}


def _loadable(form: Kronecker, shape: Sequence[int]) -> bool:
    """Whether LyCORIS can load it: one product, not cropped, whose first factor is the smaller one."""
    (terms, high, wide), (out, into) = form.left.shape, shape[:2]
    divides = out % high == 0 and into % wide == 0
    return terms == 1 and divides and high * high <= out and wide * wide <= into and form.out.shape[1] == out // high


def smaller(form: Kronecker) -> LowRank | Dense:
    """A Kronecker product as a product of two matrices if that has fewer numbers, else as ΔW.

    L ⊗ (A Bᵀ) = (L ⊗ A) (I ⊗ Bᵀ), cropped like ΔW.
    """
    rows, columns, wide = form.rows, form.columns, form.left.shape[-1]
    if form.into is not None and len(form.left) * wide * form.into.shape[-1] * (rows + columns) < rows * columns:
        eye = torch.eye(wide)
        left = torch.cat([torch.kron(one, two) for one, two in zip(form.left, form.out, strict=True)], 1)
        right = torch.cat([torch.kron(eye, two.mT.contiguous()) for two in form.into])
        return LowRank(left[:rows], right[:, :columns])
    return Dense(form.dense())


def _number(value: int) -> Tensor:
    return torch.tensor(float(value))
