"""`scaling: weights`: ΔW scales with the weights it is added to, so that one learning rate fits every base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from superlora_cli.adapter.config import ALPHA, ALPHA_ON_LEVELS, AdapterConfig
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.multiplied import MULTIPLY
from superlora_cli.adapter.targets import Target


def settled(config: AdapterConfig, targets: Sequence[Target], base: Sequence[Tensor]) -> AdapterConfig:
    """The same knobs with `scaling: weights` replaced by the equivalent `alpha` on this base.

    With every factor at unit scale, the root mean square of ΔW is then `alpha` (2, or 0.5 with `bits` of 1 to 8) times
    that of the target weights. So a step at a given learning rate changes ΔW by the same share of the base, whatever
    width, order, rank and projection.
    With `multiply` the size of the base is in the product already. Other scalings are left unchanged, and so are
    weights without values (meta).

    Args:
        base: the target slices of the base, in target order.

    >>> import torch
    >>> config = AdapterConfig(rank=4, scaling="weights")
    >>> found = settled(config, [Target("q", 0, 8, (8, 8), True)], [torch.full((8, 8), 0.02)])
    >>> found.scaling, found.alpha  # 2 · 0.02 / √4
    ('alpha', 0.02)
    """
    if config.scaling != "weights" or (len(base) and base[0].is_meta):
        return config
    usual = ALPHA_ON_LEVELS if config.trained_on_levels else ALPHA
    size = 1 / MULTIPLY[config.multiply].size(config.block) if config.multiplies else _size(base)
    alpha = (usual if config.alpha is None else config.alpha) * size
    terms = max(bucket.shape.terms for bucket in plan(config, [target.flat for target in targets]).buckets)
    alpha /= math.sqrt(terms * config.scale_rank ** _low_rank_units(config))
    return replace(config, scaling="alpha", alpha=float(f"{alpha:.3g}"))  # rounded: the same number on every machine


def _size(base: Sequence[Tensor]) -> float:
    """Root mean square of all entries; all-zero weights count as initialised by fan-in."""
    found = [(weight.detach().double().square().sum().item(), weight.numel()) for weight in base]
    squares, count = map(sum, zip(*found, strict=True))
    if squares > 0:
        return math.sqrt(squares / count)
    return 1 / math.sqrt(base[0][0].numel())


def _low_rank_units(config: AdapterConfig) -> int:
    """The number of sums over a rank in one product: its entries grow with √r for each."""
    if config.splits == 1 or config.combine == "hadamard" or config.left == "lowrank":
        return config.splits
    return config.splits - 1
