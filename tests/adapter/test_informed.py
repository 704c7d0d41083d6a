"""`init: gradient`: the first step goes where the gradient is largest, from ΔW = 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import superlora_cli
from superlora_cli.adapter import informed
from superlora_cli.adapter.attach import attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.informed import inform
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.svd import singular
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
    random = gain(*adapted(**knobs))
    model, adapter = adapted(**knobs, init="gradient")
    with torch.no_grad():
        before = model(X)
    inform(model, adapter, lambda: loss(model).backward())
    assert torch.equal(model(X), before)
    assert gain(model, adapter) > 1.5 * random
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, each in model.named_parameters() if each.requires_grad] == [
        f"superlora.factors.{name}" for name in adapter.factors
    ]


def gradient_of(weight: int) -> Tensor:
    """That of the unadapted weight."""
    model, _ = adapted(method="lora")
    parameter = model[weight]._parameters["weight"].requires_grad_(True)
    (found,) = torch.autograd.grad(loss(model), parameter)
    return found


def test_of_a_matrix_the_plane_is_the_leading_singular_vectors() -> None:
    model, adapter = adapted(method="lora", init="gradient")
    inform(model, adapter, lambda: loss(model).backward())
    _, _, vh = torch.linalg.svd(gradient_of(2)[4:12])
    plane = next(factor for name, factor in adapter.factors.items() if factor.shape[2:] == (8, 2) and "A2" in name)
    torch.testing.assert_close((vh[:2] @ plane[-1, 0]).abs(), 8**0.5 * torch.eye(2), atol=1e-4, rtol=0)


def test_a_core_between_frozen_planes_is_the_gradient_in_their_coordinates() -> None:
    model, adapter = adapted(method="lora", core="dense", freeze=["A2"], init="gradient", groups=1, fold="regular")
    gradients = [gradient_of(0), gradient_of(2)[4:12]]
    inform(model, adapter, lambda: loss(model).backward())
    folded = torch.cat([gradient.flatten() for gradient in gradients])
    folded = nn.functional.pad(folded, (0, 121 - len(folded))).view(11, 11)
    plane = adapter.all_factors()["b0_k1_A2"][0, 0]
    u, _, _ = torch.linalg.svd(folded)
    core = adapter.factors["b0_k1_core"][0, 0]
    cosine = nn.functional.cosine_similarity((u[:, :2].T @ folded @ plane).abs().flatten(), core.abs().flatten(), dim=0)
    assert cosine > 1 - 1e-5


@pytest.mark.parametrize(
    ("knobs", "count"),
    [
        ({"method": "lora"}, 2),  # a weight each: A1 starts at zero
        ({"method": "lora", "core": "dense"}, 4),  # the core has coordinates in both
        ({"order": 3, "core": "diagonal", "groups": 2}, 4),
        ({"method": "lorta", "freeze": ["A3"]}, 2),
        ({"method": "lorta", "freeze": ["core"]}, 2),
    ],
    ids=str,
)
def test_only_planes_that_are_used_are_decomposed(
    knobs: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    monkeypatch.setattr(informed, "singular", lambda *a, **k: done.append(a) or singular(*a, **k))
    model, adapter = adapted(**knobs, init="gradient")
    inform(model, adapter, lambda: loss(model).backward())
    assert len(done) == count


@pytest.mark.parametrize(
    ("knobs", "parts"),
    [
        ({"method": "lora"}, [[48], [96]]),
        ({"method": "hira"}, [[48], [96]]),
        ({"groups": 3}, [[48], [48, 96], [96]]),  # 38 elements each, of 48 and 64
        ({"method": "lorta", "groups": 2}, [[48, 96], [96]]),
        ({"method": "lorta"}, [[48, 96]]),
    ],
    ids=str,
)
def test_gradients_are_held_part_by_part(
    knobs: dict[str, Any], parts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = adapted(**knobs, init="gradient")
    inform(model, whole, lambda: loss(model).backward())
    monkeypatch.setattr(informed, "HELD", 1)
    model, adapter = adapted(**knobs, init="gradient")
    asked: list[list[int]] = []
    averaged: list[int] = []

    def passes() -> None:
        asked.append([parameter.numel() for parameter in model.parameters() if parameter.requires_grad])
        loss(model).backward()
        assert all(parameter.grad is None for parameter in model.parameters())

    inform(model, adapter, passes, average=lambda tensor: averaged.append(tensor.numel()))
    assert asked == parts
    assert max(averaged) == 64  # of the adapted rows only, one target after the other
    for name, factor in whole.factors.items():
        assert torch.equal(adapter.factors[name], factor)


@pytest.mark.parametrize("knobs", [{"init": "gradient"}, {"method": "shira", "projection": "steepest", "rank": None}])
def test_gradients_that_are_all_zero_are_refused(knobs: dict[str, Any]) -> None:
    """As behind a new head whose weights are zero."""
    model, adapter = adapted(**knobs)

    def passes() -> None:
        scaled = 0 * loss(model)
        scaled.backward()

    with pytest.raises(RunError, match="gradients of all target weights are zero"):
        inform(model, adapter, passes)


def test_without_a_backward_pass_there_is_no_start() -> None:
    model, adapter = adapted(init="gradient")
    with pytest.raises(RunError, match="gradients of all target weights are zero"):
        inform(model, adapter, lambda: None)
    assert [name for name, each in model.named_parameters() if each.requires_grad] == [
        f"superlora.factors.{name}" for name in adapter.factors
    ]


@pytest.mark.parametrize("knobs", [{"method": "lora_xs"}, {"method": "lora", "freeze": ["A2"]}, {"method": "vera"}])
def test_where_all_that_is_trained_starts_at_zero_it_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="init gradient finds no factor to start"):
        adapted(**knobs, init="gradient")


def test_activations_start_a_plane_as_the_principal_components_of_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informed, "HELD", 1)
    model, adapter = adapted(method="lora", init="activations")
    with torch.no_grad():
        before, inputs = model(X), model[1](model[0](X))
    calls: list[Tensor] = []

    def passes() -> None:
        calls.extend(model(half) for half in X.split(16))

    inform(model, adapter, passes)
    assert len(calls) == 2 * 2  # both halves, weight by weight
    assert torch.equal(model(X), before)
    _, _, vh = torch.linalg.svd(inputs - inputs.mean(0))
    plane = next(factor for name, factor in adapter.factors.items() if factor.shape[2:] == (8, 2) and "A2" in name)
    torch.testing.assert_close((vh[:2] @ plane[-1, 0]).abs(), 8**0.5 * torch.eye(2), atol=1e-3, rtol=0)
    loss(model).backward()
    assert all(factor.grad.any() for name, factor in adapter.factors.items() if "A1" in name)


def test_inputs_are_summed_in_full_precision_under_autocast() -> None:
    planes = []
    for half in (False, True):
        model, adapter = adapted(method="lora", init="activations")
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            inform(model, adapter, lambda model=model: model(X))
        planes.append(adapter.factors["b0_k1_A2"])  # of the first layer, whose inputs are not rounded
    torch.testing.assert_close(*planes, rtol=0, atol=1e-5)


def test_the_scale_of_the_loss_makes_no_difference() -> None:
    """So fp16 losses may be scaled."""
    (model, adapter), (other, same) = (adapted(init="gradient", core="dense") for _ in range(2))
    inform(model, adapter, lambda: loss(model).backward())
    inform(other, same, lambda: torch.autograd.backward(1024 * loss(other)))
    for factor, like in zip(adapter.factors.values(), same.factors.values(), strict=True):
        torch.testing.assert_close(factor, like)


@pytest.mark.parametrize(
    "knobs",
    [{"init": "gradient"}, {"init": "activations"}, {"method": "shira", "projection": "steepest", "rank": None}],
)
def test_layers_that_no_batch_reaches_keep_their_start(knobs: dict[str, Any]) -> None:
    """As a rare expert; the other layers start from the batches."""
    knobs = {"method": "lora", "groups": "weight", **knobs}
    (_, reference), (model, adapter) = adapted(**knobs), adapted(**knobs)
    inform(model, adapter, lambda: model[0](X).square().sum().backward())
    changed = [not torch.equal(adapter.factors[name], one) for name, one in reference.factors.items()]
    assert sorted(set(changed)) == ([False] if adapter.positions else [False, True])
    assert adapter.is_placed


def test_inputs_may_come_one_by_one() -> None:
    model, adapter = adapted(method="lora", init="activations")
    other, same = adapted(method="lora", init="activations")
    inform(model, adapter, lambda: model(X))
    inform(other, same, lambda: [other(x) for x in X])
    for factor, like in zip(adapter.factors.values(), same.factors.values(), strict=True):
        torch.testing.assert_close(factor, like)


def test_without_inputs_there_is_no_start() -> None:
    model, adapter = adapted(method="lora", init="activations")
    with pytest.raises(RunError, match="got no inputs"):
        inform(model, adapter, lambda: None)


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"method": "lorta"}, "init activations with order 3"),
        ({"groups": 1}, "init activations with groups 1"),
        ({"groups": "weight"}, "init activations with fold regular"),
        ({"method": "hira"}, "init activations with multiply elementwise"),
        ({"method": "lora", "freeze": ["A1"]}, "init activations finds no factor to start"),
        ({"method": "lora", "rank": [2, "full"]}, "init activations finds no factor to start"),
    ],
    ids=str,
)
def test_activations_start_the_planes_of_single_weights_only(knobs: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        adapted(**knobs, init="activations")


def test_activations_are_those_of_linear_layers() -> None:
    with pytest.raises(UsageError, match=r"not a plain nn\.Linear"):
        attach(nn.Conv2d(3, 4, 1), [Target("", 0, 4, (4, 3, 1, 1), True)], config_of({"method": "lora", "rank": 1,
               "init": "activations"}))  # fmt: skip


@pytest.mark.parametrize(
    "knobs",
    [{"inner": {"dim": 4}}, {"method": "lokr"}, {"method": "dense"}, {"projection": "linear"}, {"bits": 4}],
    ids=str,
)
def test_where_no_factor_can_come_from_the_gradient_it_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="init gradient with"):
        AdapterConfig.from_knobs(knobs.pop("method", None), init="gradient", **knobs)


@pytest.mark.parametrize("init", ["gradient", "activations"])
def test_a_step_before_the_start_is_refused(init: str) -> None:
    model, _ = adapted(method="lora", init=init)
    with torch.no_grad():
        model(X)  # ΔW = 0 all the same
    with pytest.raises(UsageError, match=r"its start comes from the first (gradients|activations), which") as refused:
        model(X)
    assert refused.value.where == "adapter.init"
    superlora_cli.inform(model, lambda: loss(model).backward())
    loss(model).backward()
    with pytest.raises(UsageError, match="has been informed, or loaded"):
        superlora_cli.inform(model, lambda: loss(model).backward())
    other, _ = adapted(method="lora", init=init)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))


def test_a_start_that_failed_has_not_happened() -> None:
    def broken() -> None:
        raise ValueError("no more data")

    model, adapter = adapted(method="lora", init="activations")
    with pytest.raises(ValueError, match="no more data"):
        inform(model, adapter, broken)
    with pytest.raises(UsageError, match="which it has not seen"):
        model(X)


def test_only_adapters_that_start_from_batches_are_informed() -> None:
    model = nn.Sequential(nn.Linear(6, 8))
    with pytest.raises(UsageError, match="the model has no adapter"):
        superlora_cli.inform(model, lambda: None)
    superlora_cli.attach(model, ["0"], "lora", rank=2)
    with pytest.raises(UsageError, match="takes nothing from batches"):
        superlora_cli.inform(model, lambda: None)
