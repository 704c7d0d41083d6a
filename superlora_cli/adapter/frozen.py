"""The parts of an adapter that are not trained: F, F_in, the frozen factors, and F(x₀)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from superlora_cli.adapter import projections
from superlora_cli.adapter.factors import folded
from superlora_cli.adapter.initial import initial, relative
from superlora_cli.adapter.inner import InnerMaps, factors
from superlora_cli.adapter.shapes import GroupShape, Plan


class Frozen:
    """The untrained parts: F for every size, F_in and the frozen factors, and F(x₀) where ΔW is relative to it.

    They are recreated from the seed and, with `frozen: svd`, from the base; never stored.

    Args:
        plan: the adapter's shapes.
        base: the frozen factors taken from the base, as returned by `svd.planes`.
        start: whether to compute F(x₀).
    """

    def __init__(
        self,
        plan: Plan,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        base: Mapping[str, Tensor] | None = None,
        start: bool = True,
    ) -> None:
        config = plan.config
        device = torch.device(device)
        self.device, self.dtype = device, dtype
        self.relative = relative(plan)
        self.inner = InnerMaps(plan, base, device=device, dtype=dtype)
        self.maps: dict[tuple[object, ...], projections.Project] = {}
        for shape in (bucket.shape for bucket in plan.buckets):
            size = projections.Size(shape.n_in, shape.n_out, config.rescale, shape.grid)
            if (shape.n_in, shape.n_out, shape.grid) not in self.maps:
                self.maps[shape.n_in, shape.n_out, shape.grid] = projections.build(
                    config.projection, size, config.seed, device=device, dtype=dtype
                )
        self.starts: dict[int, Tensor] = {}  # by number of the bucket
        if self.relative and start:
            values = self.start_factors(plan)
            with torch.no_grad():
                for bucket in plan.buckets:
                    self.starts[bucket.number] = self.project(bucket.shape, folded(bucket, values, plan.config))

    def factors(self, plan: Plan, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{C, A} by name from the trained tensors, with F_in, frozen factors and diagonals; as `inner.factors`."""
        return factors(plan, trained, self.inner)

    def start_factors(self, plan: Plan) -> dict[str, Tensor]:
        """{C, A} that the start makes: quantised where training was, not of what was quantised when it was finished."""
        config = plan.config
        begun = replace(plan, config=replace(config, bits=None, scales=())) if config.scales else plan
        return self.factors(begun, {name: value.to(self.device, self.dtype) for name, value in initial(plan).items()})

    def project(self, shape: GroupShape, x: Tensor) -> Tensor:
        """F: (groups, n_in) → (groups, n_out)."""
        return self.maps[shape.n_in, shape.n_out, shape.grid](x)
