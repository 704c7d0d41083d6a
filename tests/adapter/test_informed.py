"""`init: gradient`: the first step goes where the gradient is largest, from ΔW = 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from superlora_cli.adapter.attach import attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.informed import informed
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import RunError, UsageError
from tests.adapter.variants import config_of

TARGETS = [Target("0", 0, 8, (8, 6), True), Target("2", 4, 12, (8, 8), False)]
X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
WANTED = torch.randn(32, 12, generator=torch.Generator().manual_seed(2))


def adapted(**knobs: Any) -> tuple[nn.Module, SuperLora]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 12))
    return model, attach(model, TARGETS, config_of({"rank": 2, **knobs}))


def loss(model: nn.Module) -> Tensor:
    return (model(X) - WANTED).square().mean()


def gain(model: nn.Module, adapter: SuperLora) -> float:
    """The squared slope of the loss in the trained numbers."""
    grads = torch.autograd.grad(loss(model), list(adapter.factors.values()))
    return float(sum(grad.square().sum() for grad in grads))


@pytest.mark.parametrize(
    "knobs",
    [
        {"method": "lora"},
        {"method": "lora", "core": "dense"},
        {"method": "lorta"},
        {"order": 3, "core": "diagonal", "groups": 2},
        {"method": "hira"},
        {"groups": 1, "multiply": "rotation", "block": 4},
        {"method": "lora", "rank": ["full", 2]},
    ],
    ids=str,
)
def test_the_loss_falls_faster_at_first_and_from_the_same_start(knobs: dict[str, Any]) -> None:
    model, adapter = adapted(**knobs, init="gradient")
    before, random = model(X), gain(model, adapter)
    with informed(model, adapter):
        loss(model).backward()
    assert torch.equal(model(X), before)
    assert gain(model, adapter) > 1.5 * random
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, each in model.named_parameters() if each.requires_grad] == [
        f"superlora.factors.{name}" for name in adapter.factors
    ]


def test_of_a_matrix_the_plane_is_the_leading_singular_vectors() -> None:
    model, adapter = adapted(method="lora", init="gradient")
    with informed(model, adapter) as weights:
        loss(model).backward()
        gradient = weights[1].grad[4:12].clone()
    _, _, vh = torch.linalg.svd(gradient)
    plane = next(factor for name, factor in adapter.factors.items() if factor.shape[2:] == (8, 2) and "A2" in name)
    torch.testing.assert_close((vh[:2] @ plane[-1, 0]).abs(), 8**0.5 * torch.eye(2), atol=1e-4, rtol=0)


def test_without_a_backward_pass_there_is_no_start() -> None:
    model, adapter = adapted(init="gradient")
    with pytest.raises(RunError, match="got no gradient"), informed(model, adapter):
        pass
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "superlora" not in name)


@pytest.mark.parametrize(
    "knobs",
    [{"inner": {"dim": 4}}, {"method": "lokr"}, {"method": "dense"}, {"projection": "linear"}, {"bits": 4}],
    ids=str,
)
def test_where_no_factor_can_come_from_the_gradient_it_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="init gradient with"):
        AdapterConfig.from_knobs(knobs.pop("method", None), init="gradient", **knobs)
