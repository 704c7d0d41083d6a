"""The update of one weight as LyCORIS stores it: tensors whose names follow the module's key.

    LoRA    lora_up.weight (out, r), lora_down.weight (r, in), alpha       ΔW = up · down · alpha / r
    LoHa    hada_w1_a (out, r), hada_w1_b (r, in), hada_w2_a, hada_w2_b, alpha       ΔW = (w1_a w1_b) ⊙ (w2_a w2_b)
    LoKr    lokr_w1 (f, f), lokr_w2 (d, e) or lokr_w2_a (d, r), lokr_w2_b (r, e), alpha       ΔW = w1 ⊗ w2
    ΔW      diff

Every scale is written into the first factor, and alpha is the rank: loaders differ in when they multiply by alpha / r.

Convolutions may have one factor more, for the kernel (`lora_mid.weight`, `hada_t1`, `hada_t2`, `lokr_t2`), which is
read and not written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from superlora_cli.adapter.updates import Dense, Form, Hadamard, Kronecker, LowRank, scaled, smaller
from superlora_cli.models.families.naming import factors

Tensors = dict[str, Tensor]
LORA, LOHA, LOKR, DIFF = "lora", "loha", "lokr", "diff"


class Written(NamedTuple):
    """An update as a file has it: its kind, its rank if it has one, and its tensors by what follows the key."""

    kind: str
    rank: int | None
    tensors: Tensors


def written(form: Form, shape: Sequence[int], key: str) -> Written:
    """The update of a weight as it is written.

    Args:
        form: a Kronecker product that LyCORIS cannot load is written as LoRA or ΔW, whichever is smaller.
        shape: of the whole weight, (out, in) or (out, in, kh, kw).
        key: of the module; if it has dots, as in diffusers, LoRA has the names of diffusers.
    """
    if isinstance(form, Kronecker) and not _loadable(form, shape):
        form = smaller(form)
    if isinstance(form, LowRank):
        return Written(LORA, form.right.shape[0], _lora(form, shape, key))
    if isinstance(form, Hadamard):
        one, other = form.left, form.right
        pairs = {"hada_w1_a": one.left, "hada_w1_b": one.right, "hada_w2_a": other.left, "hada_w2_b": other.right}
        return Written(LOHA, one.right.shape[0], {**pairs, "alpha": _number(one.right.shape[0])})
    if isinstance(form, Kronecker):
        return Written(LOKR, *_lokr(form, shape))
    return Written(DIFF, None, {"diff": form.delta.reshape(tuple(shape))})


def _lora(form: LowRank, shape: Sequence[int], key: str) -> Tensors:
    rank = form.right.shape[0]
    up = form.left.reshape(shape[0], rank, *(1 for _ in shape[2:]))
    down = form.right.reshape(rank, *shape[1:])
    alpha = {} if "." in key else {"alpha": _number(rank)}
    return {**dict(zip(factors(key), (down, up), strict=True)), **alpha}


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


def form_of(parts: Mapping[str, Tensor], shape: Sequence[int], scale: Callable[[int], float] | None = None) -> Form:
    """The update that some tensors are: what `written` makes, and what other programs do.

    Args:
        parts: the tensors by what follows the module's key.
        shape: of the whole weight.
        scale: from a rank, where the file says so elsewhere than in `alpha`.

    Raises:
        ValueError: they are no such update, or do not have the weight's shape.
    """
    parts = {name: tensor.float() for name, tensor in parts.items()}
    reader = next((read for name, read in READERS.items() if name in parts), None)
    if reader is None:
        raise ValueError(f"an update of another kind ({', '.join(sorted(parts))})")
    try:
        form, rank, known = reader(parts, shape)
        fits = _sides(form) == (shape[0], math.prod(shape[1:]))
    except (KeyError, RuntimeError, IndexError):
        fits, known = False, set(parts)
    if not fits:
        raise ValueError(f"its factors do not make a weight of shape {list(shape)}")
    if others := sorted(parts.keys() - known - {"alpha"}):
        raise ValueError(f"an update that is more than its factors ({', '.join(others)})")
    if scale is None:
        alpha = parts.get("alpha")
        return form if alpha is None or rank is None else scaled(form, alpha.item() / rank)
    return scaled(form, scale(rank or 1))


def _sides(form: Form) -> tuple[int, ...]:
    """(rows, columns) of an update; () if its factors do not fit each other."""
    if isinstance(form, Dense):
        return tuple(form.delta.shape)
    if isinstance(form, LowRank):
        return (len(form.left), form.right.shape[1]) if form.left.shape[1] == len(form.right) else ()
    if isinstance(form, Hadamard):
        one, other = _sides(form.left), _sides(form.right)
        return one if one == other else ()
    (_, high, wide), (_, rows, inner) = form.left.shape, form.out.shape
    if form.into is None:
        return high * rows, wide * inner
    return (high * rows, wide * form.into.shape[1]) if form.into.shape[2] == inner else ()


Read = tuple[Form, int | None, set[str]]  # the update, the rank that alpha is divided by, the tensors' names


def _read_lora(parts: Mapping[str, Tensor], shape: Sequence[int]) -> Read:
    names = ("lora_up.weight", "lora_down.weight")
    up, down = (parts[name] for name in names)
    right = down.flatten(1)
    if (middle := parts.get("lora_mid.weight")) is not None:
        right = _kernel(middle, down.flatten(1))
    return LowRank(up.flatten(1), right), len(down), {*names, "lora_mid.weight"}


def _read_loha(parts: Mapping[str, Tensor], shape: Sequence[int]) -> Read:
    halves, known = [], set[str]()
    for k in (1, 2):
        names = (f"hada_w{k}_a", f"hada_w{k}_b", f"hada_t{k}")
        left, right = (parts[name] for name in names[:2])
        if (middle := parts.get(names[2])) is not None:
            left, right = left.mT, _kernel(middle, right)
        halves.append(LowRank(left, right))
        known |= set(names)
    return Hadamard(*halves), len(parts["hada_w1_b"]), known


def _read_lokr(parts: Mapping[str, Tensor], shape: Sequence[int]) -> Read:
    """alpha counts only where a factor is a product."""
    rank, known = None, {f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}
    if (left := parts.get("lokr_w1")) is None:
        left, rank = parts["lokr_w1_a"] @ parts["lokr_w1_b"], len(parts["lokr_w1_b"])
    if (out := parts.get("lokr_w2")) is not None:
        return Kronecker(left[None], out.flatten(1)[None], None, shape[0], math.prod(shape[1:])), rank, known
    out, right = parts["lokr_w2_a"], parts["lokr_w2_b"]
    rank = len(right)
    if (middle := parts.get("lokr_t2")) is not None:
        out, right = out.mT, _kernel(middle, right)
    return Kronecker(left[None], out[None], right.mT[None], shape[0], math.prod(shape[1:])), rank, known


def _read_diff(parts: Mapping[str, Tensor], shape: Sequence[int]) -> Read:
    return Dense(parts["diff"].flatten(1)), None, {"diff"}


READERS: dict[str, Callable[[Mapping[str, Tensor], Sequence[int]], Read]] = {
    "lora_up.weight": _read_lora,
    "hada_w1_a": _read_loha,
    **dict.fromkeys(("lokr_w1", "lokr_w1_a"), _read_lokr),
    "diff": _read_diff,
}  # a name that tells the kind


def _kernel(middle: Tensor, right: Tensor) -> Tensor:
    """(r, s, kh, kw) and (s, in) → (r, in·kh·kw)."""
    return torch.einsum("rs...,si->ri...", middle, right).flatten(1)


def sliced(form: Form, start: int, stop: int) -> Form:
    """Some rows of an update."""
    if isinstance(form, Hadamard):
        return Hadamard(*(LowRank(part.left[start:stop], part.right) for part in (form.left, form.right)))
    if isinstance(form, LowRank):
        return LowRank(form.left[start:stop], form.right)
    if isinstance(form, Kronecker):
        side = form.out.shape[1]
        if (start, stop) == (0, form.rows):
            return form
        if start % side == 0 and stop % side == 0:
            return replace(form, left=form.left[:, start // side : stop // side], rows=stop - start)
        return sliced(smaller(form), start, stop)
    return Dense(form.delta[start:stop])


def _number(value: int) -> Tensor:
    return torch.tensor(float(value))
