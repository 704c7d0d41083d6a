"""The layers of torchao and bitsandbytes, put into a model by hand: the contract of adapters holds for each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import bitsandbytes
import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

import superlora_cli
from superlora_cli.adapter.layers import stored_parameter
from superlora_cli.adapter.packed import is_packed, move, weight_of
from superlora_cli.errors import MismatchError

X = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def torchao(config: object) -> Callable[[nn.Linear], nn.Linear]:
    def quantise(linear: nn.Linear) -> nn.Linear:
        quantize_(linear, config)
        return linear

    return quantise


def four(kind: str) -> Callable[[nn.Linear], nn.Linear]:
    def quantise(linear: nn.Linear) -> nn.Linear:
        layer = bitsandbytes.nn.Linear4bit(64, linear.out_features, quant_type=kind, compute_dtype=torch.float32)
        layer.load_state_dict(linear.state_dict())
        layer.support_avx512bf16_for_cpu = False
        return layer.to("cpu")

    return quantise


def eight(linear: nn.Linear) -> nn.Linear:
    layer = bitsandbytes.nn.Linear8bitLt(64, linear.out_features, has_fp16_weights=False)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


LIBRARIES: dict[str, Callable[[nn.Linear], nn.Linear]] = {
    "torchao int8": torchao(Int8WeightOnlyConfig()),
    "torchao int4": torchao(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))),
    "bitsandbytes nf4": four("nf4"),
    "bitsandbytes fp4": four("fp4"),
    "bitsandbytes int8": eight,
}
EACH = pytest.mark.parametrize("library", LIBRARIES)
METHODS = {
    "factored": {"method": "lora", "rank": 2, "execution": "factored"},
    "materialised": {"method": "lorta", "rank": 2, "execution": "materialised"},
    "its singular vectors": {"method": "lora_xs", "rank": 3},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(64, 128), nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.tanh(self.q(x)))


def net(library: str) -> Net:
    torch.manual_seed(0)
    made = Net().requires_grad_(False)
    made.q = LIBRARIES[library](made.q)
    return made


def dequantised(model: Net) -> Net:
    plain = Net()
    plain.o = copy.deepcopy(model.o)
    plain.q.weight, plain.q.bias = nn.Parameter(weight_of(model.q)), nn.Parameter(model.q.bias.detach().clone())
    return plain


def moved(model: nn.Module, **knobs: object) -> superlora_cli.SuperLora:
    adapter = superlora_cli.attach(model, ["q"], **knobs)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.copy_(torch.randn(factor.shape, generator=generator) * 0.2)
    return adapter


@pytest.mark.parametrize("knobs", METHODS.values(), ids=METHODS)
@EACH
def test_a_layer_computes_its_own_output_and_the_update(library: str, knobs: dict[str, object]) -> None:
    model = net(library)
    assert is_packed(model.q)
    own, twin = model.q(X), dequantised(model)
    torch.testing.assert_close(own, twin.q(X), rtol=1e-4, atol=1e-4)
    adapter, other = moved(model, **knobs), moved(twin, **knobs)
    assert adapter.params == other.params == sum(factor.numel() for factor in adapter.factors.values())
    (delta,) = adapter.compute()
    torch.testing.assert_close(model.q(X), own + X @ delta.mT, rtol=1e-5, atol=1e-5)
    inputs = [X.clone().requires_grad_() for _ in range(2)]
    for each, x in zip((model, twin), inputs, strict=True):
        each.train()(x).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-3)
    for name, factor in adapter.factors.items():
        torch.testing.assert_close(factor.grad, other.factors[name].grad, rtol=1e-3, atol=1e-3)
    superlora_cli.detach(model)
    torch.testing.assert_close(model.q(X), own, rtol=0, atol=0)


@EACH
def test_a_file_is_of_this_base_and_these_bits_before_and_after_evaluation(library: str, tmp_path: Path) -> None:
    model = net(library)
    moved(model, method="lora", rank=2)
    with torch.inference_mode():
        expected = model.eval()(X)
    superlora_cli.save(model, tmp_path / "a.safetensors")
    again = net(library).eval()
    superlora_cli.load(again, tmp_path / "a.safetensors")
    with torch.inference_mode():
        assert torch.equal(again(X), expected)
    for name in LIBRARIES:
        if name != library:
            with pytest.raises(MismatchError):
                superlora_cli.load(net(name), tmp_path / "a.safetensors")
    with pytest.raises(MismatchError, match="the base is stored as float32"):
        superlora_cli.load(dequantised(model), tmp_path / "a.safetensors")


@EACH
def test_a_model_is_moved_and_copied_with_its_adapter(library: str) -> None:
    model = net(library)
    moved(model, method="lora", rank=2)
    expected = model.eval()(X)
    torch.testing.assert_close(copy.deepcopy(model).to("cpu")(X), expected)
    assert stored_parameter(model, "q.weight") is model.q._parameters["weight"]


@pytest.mark.parametrize("used", [False, True])
def test_a_moved_layer_leaves_nothing_behind(used: bool) -> None:
    layer = eight(nn.Linear(64, 8))
    wanted = copy.deepcopy(layer)(X)
    if used:  # bitsandbytes keeps the weight elsewhere from then on
        layer(X)
    holder = layer.state if used else layer.weight
    holder.CB = holder.CB.clone()  # as on another device
    move(nn.Sequential(layer), torch.device("cpu"))
    assert holder.CB.data_ptr() == layer.weight.data_ptr()
    assert torch.equal(layer(X), wanted)
