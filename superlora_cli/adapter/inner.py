"""{C, A} = F_in(Q_b(θ)): the one place where the trained tensors become the factors of Eq. 2.

Either the factors themselves are trained, or θ, from which F_in makes them; both are quantised if `bits` is set. Frozen
factors are added and diagonals multiplied in, so that later steps deal with cores and planes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from superlora_cli.adapter import projections
from superlora_cli.adapter.initial import start, start_scale
from superlora_cli.adapter.inner_config import MAPS, Inner
from superlora_cli.adapter.prng import random_state
from superlora_cli.adapter.quantized import quantized
from superlora_cli.adapter.shapes import THETA, Plan


class InnerMaps:
    """The frozen parts of {C, A}: F_in for every piece of θ, and the factors that are not trained.

    Args:
        plan: the adapter's shapes.
        base: singular vectors by name, as returned by `svd.planes`; for `frozen: svd`.
    """

    def __init__(self, plan: Plan, base: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype) -> None:
        self.maps: list[projections.Project] = []
        self.scales: dict[str, float] = {}
        if inner := plan.config.inner:
            for number, piece in enumerate(plan.pieces):
                size = projections.Size(inner.dim, sum(piece.sizes), plan.config.rescale)
                key, name = f"inner/{number}", MAPS.get(inner.projection)
                if name is None:
                    self.maps.append(partial(mixtures, inner=inner, entries=size.n_out))
                    continue
                self.maps.append(projections.build(name, size, plan.config.seed, device=device, dtype=dtype, key=key))
            self.scales = {
                unit.name(part): start_scale(unit.shape, part) for unit in plan.units for part in unit.trained
            }
        self.fixed = {name: tensor.to(device, dtype) for name, tensor in _fixed(plan, base).items()}

    def project(self, plan: Plan, theta: Tensor) -> dict[str, Tensor]:
        """θ (rows, d) → every trained entry of {C, A}, by name."""
        made: dict[str, Tensor] = {}
        for project, piece in zip(self.maps, plan.pieces, strict=True):
            image = project(theta[piece.start : piece.start + piece.count])  # (rows, entries)
            for part, (name, shape) in zip(image.split(piece.sizes, -1), piece.tensors.items(), strict=True):
                scale = self.scales[name] if plan.config.rescale else 1.0
                made[name] = (part * scale if scale != 1 else part).reshape(shape)
        return made


def mixtures(theta: Tensor, inner: Inner, entries: int) -> Tensor:
    """θ (1, d) → (1, entries), d consecutive entries at a time: Σ softmax(weights)_k · vector_k over the top k."""
    assert inner.vectors is not None
    assert inner.topk is not None
    bank, weights = theta.split([inner.vectors * inner.dim, theta.shape[1] - inner.vectors * inner.dim], 1)
    top = weights.view(-1, inner.vectors).topk(inner.topk)  # (mixtures, k)
    chosen = bank.view(inner.vectors, inner.dim)[top.indices]  # (mixtures, k, d)
    return (top.values.softmax(-1).unsqueeze(-1) * chosen).sum(-2).view(1, -1)[:, :entries]


def factors(plan: Plan, params: Mapping[str, Tensor], inner: InnerMaps) -> dict[str, Tensor]:
    """{C, A} by name, (groups, terms, ...) each, from the trained tensors; differentiable in `params`.

    Args:
        plan: the adapter's shapes.
        params: its trained tensors, as named and shaped by `plan.tensors`.
        inner: F_in and the frozen factors, on the device and in the dtype of `params`.
    """
    params = quantized(plan, params)
    made = inner.project(plan, params[THETA]) if inner.maps else params
    made |= inner.fixed
    for unit in plan.units:
        for m in unit.shape.diagonals:
            diagonal = made.pop(unit.name(f"D{m}")).unsqueeze(-1)  # (groups, terms, d, 1)
            made[unit.name(f"A{m}")] = diagonal * made[unit.name(f"A{m}")]
    return made


def _fixed(plan: Plan, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors that are not trained; random ones are shared by all groups of a bucket."""
    fixed: dict[str, Tensor] = {}
    for unit in plan.units:
        for part in unit.shape.frozen:
            name, (groups, terms) = unit.name(part), unit.batch
            if plan.config.frozen == "svd" and part != "core":
                fixed[name] = base[name]
                continue
            shape = (terms, *unit.shape.tensors[part])
            draw = random_state(plan.config.seed, "frozen", f"k{unit.k}_{part}", *shape)
            values = torch.from_numpy(start(plan.config, unit.shape, part, shape, draw)).float()
            fixed[name] = values.expand(groups, *shape)
    return fixed
