"""What `bytes.py` tries beside the package's knobs, by patching the package for the time of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import head_to_head
import torch
from attaching import Adapted, adapted
from methods import Method
from torch import Tensor, nn

from superlora_cli.adapter import initial, inner, quantized

NORMAL = "normal start"  # times a standard normal
SPREAD = "spacing"  # times the one of `quantized.SPACING`
TRAINED = "trained spacing"  # in steps of this times the rate


@contextmanager
def patched(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The package with what is tried among some settings; the other settings, which are knobs."""
    with ExitStack() as stack:
        for name in TRIED.keys() & settings:
            stack.enter_context(TRIED[name](settings[name]))
        yield {name: value for name, value in settings.items() if name not in TRIED}


@contextmanager
def _normal(scale: float) -> Iterator[None]:
    """θ starts from normal numbers."""
    before = initial._initial_theta

    def theta(plan: Any) -> Tensor:
        return scale * torch.randn(before(plan).shape, generator=torch.Generator().manual_seed(plan.config.seed))

    with patch.object(initial, "_initial_theta", theta):
        yield


@contextmanager
def _spread(times: float) -> Iterator[None]:
    """Levels further apart, or nearer."""
    with patch.dict(quantized.SPACING, {bits: times * each for bits, each in quantized.SPACING.items()}):
        yield


@contextmanager
def _trained(speed: float) -> Iterator[None]:
    """The spacing is trained, in steps of `speed` times the rate (LSQ, arXiv 1902.08153): s · exp(speed · p)."""
    power = nn.Parameter(torch.zeros(()))

    def made(plan: Any, params: Any) -> dict[str, Tensor]:
        (theta,), (spacing,) = params.values(), quantized.scales(plan).values()
        free = theta.requires_grad  # what is taken off for the start keeps the spacing of the start
        return {"theta": _Levels.apply(theta, spacing * torch.exp(speed * power * free), plan.config.bits)}

    def with_power(base: nn.Module, method: Method, seed: int) -> Adapted:
        found = adapted(base, method, seed)
        with torch.no_grad():
            power.zero_()
        return found._replace(trained={**found.trained, "power": power})

    with patch.object(inner, "quantized", made), patch.object(head_to_head, "adapted", with_power):
        yield


TRIED = {NORMAL: _normal, SPREAD: _spread, TRAINED: _trained}


class _Levels(torch.autograd.Function):
    """The nearest levels; straight-through for the numbers, and the spacing's own gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, spacing: Tensor, bits: int) -> Tensor:
        half = 2 ** (bits - 1)
        level = (values / spacing).floor().clamp(-half, half - 1) + 0.5
        inside = (values / spacing).abs() <= half
        ctx.save_for_backward(torch.where(inside, level - values / spacing, level))
        ctx.share = (values.numel() * half) ** -0.5
        return level * spacing

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        (change,) = ctx.saved_tensors
        return gradient, (gradient * change).sum() * ctx.share, None
