"""Packed weights: adapted on their layers' outputs, whatever a library stores."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import superlora_cli
from superlora_cli.adapter.attach import SuperLora, attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.packed import weight_of
from superlora_cli.adapter.store import digest_base
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import MismatchError, UsageError

X = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))


class InBytes(nn.Parameter):
    """As libraries of quantised weights have them."""


class Nibbles(nn.Linear):
    """A linear layer whose weight is stored in 4 bits, two to a byte, with one scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.bias = linear.bias
        whole = linear.weight.detach().flatten()
        self.register_buffer("scale", whole.abs().max() / 7)
        numbers = (whole / self.scale).round().to(torch.int8) + 8
        self.weight = InBytes((numbers[::2] * 16 + numbers[1::2]).view(torch.uint8)[:, None], requires_grad=False)

    def whole(self) -> Tensor:
        pairs = self._parameters["weight"]
        assert pairs is not None
        numbers = torch.stack([pairs // 16, pairs % 16], -1).to(torch.int16) - 8
        return (numbers * self.scale).view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.whole().to(input.dtype), self.bias)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(24, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.tanh(self.q(x)))


def net(*, packed: bool = True) -> Net:
    torch.manual_seed(0)
    made = Net()
    made.q = Nibbles(made.q) if packed else made.q
    return made


def dequantised() -> Net:
    """The same with W in floating point."""
    made, packed = net(packed=False), net().q
    assert isinstance(packed, Nibbles)
    made.q.weight = nn.Parameter(packed.whole())
    return made


TARGETS = [Target("q", 4, 12, (8, 24), False), Target("q", 16, 32, (16, 24), False)]
WHOLE = [Target("q", 0, 32, (32, 24), True)]
KNOBS: dict[str, dict[str, Any]] = {
    "factored": {"method": "lora", "rank": 2, "execution": "factored"},
    "materialised": {"method": "lora", "rank": 2, "execution": "materialised"},
    "Kronecker": {"method": "lokr", "rank": 2, "split_dim": 2, "execution": "factored"},
    "Tucker": {"method": "lorta", "rank": 3},
    "its singular vectors": {"method": "lora_xs", "rank": 3},
    "its largest positions": {"method": "shira", "projection": "largest", "ratio": 0.2},
    "its size": {"method": "lora", "rank": 2, "scaling": "weights"},
}


def adapted(model: nn.Module, knobs: dict[str, Any], targets: list[Target], seed: int = 0) -> SuperLora:
    knobs = dict(knobs)
    adapter = attach(model, targets, AdapterConfig.from_knobs(knobs.pop("method", None), **knobs))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.copy_(torch.randn(factor.shape, generator=generator) * 0.3)
    return adapter


@pytest.mark.parametrize("targets", [TARGETS, WHOLE], ids=["rows", "whole"])
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_a_packed_layer_computes_and_learns_as_its_floating_point_twin(
    knobs: dict[str, Any], targets: list[Target]
) -> None:
    models = net(), dequantised()
    before, inputs = models[0](X), [X.clone().requires_grad_() for _ in models]
    adapters = [adapted(model, knobs, targets) for model in models]
    outputs = [model(x) for model, x in zip(models, inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    assert not torch.allclose(outputs[0], before, atol=1e-3)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for name, factor in adapters[0].factors.items():
        torch.testing.assert_close(factor.grad, adapters[1].factors[name].grad)
    assert adapters[0].params == adapters[1].params
    superlora_cli.detach(models[0])
    assert torch.equal(models[0](X), before)
    assert type(models[0].q) is Nibbles


def test_a_weight_is_found_by_the_outputs_for_unit_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superlora_cli.adapter.packed.UNITS", 7)
    layer = net().q
    assert isinstance(layer, Nibbles)
    assert torch.equal(weight_of(layer), layer.whole())
    assert layer.bias is not None


def test_in_half_precision_the_output_keeps_its_dtype() -> None:
    model = net().bfloat16()
    adapted(model, KNOBS["factored"], TARGETS)
    assert model(X.bfloat16()).dtype is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert net()(X).dtype is torch.bfloat16


def test_a_copied_and_a_pickled_model_are_adapted_as_before() -> None:
    model = net()
    adapted(model, KNOBS["factored"], WHOLE)
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    for other in (copy.deepcopy(model), torch.load(held, weights_only=False)):
        assert torch.equal(other(X), model(X))


def test_merging_into_a_packed_weight_is_refused_and_changes_nothing() -> None:
    model = net()
    adapted(model, KNOBS["factored"], WHOLE)
    before = model(X)
    with pytest.raises(UsageError, match=r"q\.weight: is quantised: ΔW cannot be added to it"):
        superlora_cli.detach(model, merge=True)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"method": "dora", "rank": 2},
            "ΔW would be a product with all its numbers .multiply: magnitude",
        ),
        ({"method": "lora", "rank": 2, "init": "gradient"}, "it gets no gradient .init: gradient"),
    ],
)
def test_knobs_that_need_its_numbers_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"q\.weight: is quantised: {message}"):
        adapted(net(), knobs, WHOLE)


def test_a_file_belongs_to_the_base_as_it_is_packed(tmp_path: Path) -> None:
    model = net()
    superlora_cli.attach(model, "q", "lora", rank=2)
    superlora_cli.save(model, tmp_path / "a.safetensors")
    superlora_cli.load(net(), tmp_path / "a.safetensors")
    coarser = net()
    coarser.q.scale *= 2
    for other, says in (
        (dequantised(), "stored as float32, but the adapter was trained on InBytes"),
        (coarser, "not the base"),
    ):
        with pytest.raises(MismatchError, match=says):
            superlora_cli.load(other, tmp_path / "a.safetensors")
    superlora_cli.load(dequantised(), tmp_path / "a.safetensors", allow_base_mismatch=True)
    assert digest_base(net(), WHOLE) == digest_base(net(), WHOLE)
