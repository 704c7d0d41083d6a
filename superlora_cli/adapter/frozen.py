"""The parts of an adapter that are not trained: F, F_in, the frozen factors, F(x₀), and the base's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from superlora_cli.adapter import projections
from superlora_cli.adapter.factors import folded
from superlora_cli.adapter.from_base import FromBase
from superlora_cli.adapter.initial import initial, relative
from superlora_cli.adapter.inner import InnerMaps, factors
from superlora_cli.adapter.multiplied import MULTIPLY
from superlora_cli.adapter.shapes import Bucket, Plan
from superlora_cli.errors import UsageError


class Frozen:
    """The untrained parts: F for every size, F_in and the frozen factors, F(x₀) where ΔW is relative to it, and the
    base's weights where ΔW is a product with them.

    They are recreated from the seed and, where `config.reads_base`, from the base; never stored, but for positions that
    gradients choose.

    Args:
        plan: the adapter's shapes.
        base: what is taken from the base.
        light: hold neither F(x₀) nor the base's weights.

    Raises:
        UsageError: the base is needed, and was not given.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        base: FromBase | None = None,
        light: bool = False,
    ) -> None:
        config = plan.config
        device = torch.device(device)
        self.device, self.dtype = device, dtype
        self.relative = relative(plan)
        if config.reads_base and base is None:
            raise UsageError("ΔW depends on the base's weights, which are not available",
                             where="adapter", hint="attach it to the base")  # fmt: skip
        base = base or FromBase()
        self.inner = InnerMaps(plan, base.planes, device=device, dtype=dtype)
        self.product = MULTIPLY[config.multiply]
        self.chosen = {group: positions.to(device) for group, positions in base.chosen.items()}
        self.weights = [] if light else [weight.flatten(1).to(device) for weight in base.weights]
        self.maps: dict[tuple[object, ...], projections.Project] = {}
        for shape in (bucket.shape for bucket in plan.buckets):
            size = projections.Size(shape.n_in, shape.n_out, config.rescale, shape.grid)
            if (shape.n_in, shape.n_out, shape.grid) not in self.maps:
                self.maps[shape.n_in, shape.n_out, shape.grid] = projections.build(
                    config.projection, size, config.seed, device=device, dtype=dtype
                )
        self.starts: dict[int, Tensor] = {}  # by number of the bucket
        if self.relative and not light:
            values = self.start_factors(plan)
            with torch.no_grad():
                for bucket in plan.buckets:
                    self.starts[bucket.number] = self.project(bucket, folded(bucket, values, plan.config))

    def factors(self, plan: Plan, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{C, A} by name from the trained tensors, with F_in, frozen factors and diagonals; as `inner.factors`."""
        return factors(plan, trained, self.inner)

    def start_factors(self, plan: Plan) -> dict[str, Tensor]:
        """{C, A} that the start makes: quantised where training was, not of what was quantised when it was finished."""
        config = plan.config
        begun = replace(plan, config=replace(config, bits=None, scales=())) if config.scales else plan
        return self.factors(begun, {name: value.to(self.device, self.dtype) for name, value in initial(plan).items()})

    def project(self, bucket: Bucket, x: Tensor) -> Tensor:
        """F: (groups, n_in) → (groups, n_out)."""
        shape = bucket.shape
        project = self.maps[shape.n_in, shape.n_out, shape.grid]
        return project(x, torch.stack([self.chosen[group] for group in bucket.members])) if self.chosen else project(x)

    def multiplied(self, made: Sequence[Tensor]) -> list[Tensor]:
        """ΔW of every target, (rows, columns), from what the units made for it."""
        if not self.product.takes_weight:
            return list(made)
        return [self.product.delta(x, weight.to(x)) for x, weight in zip(made, self.weights, strict=True)]
