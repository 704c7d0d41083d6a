"""The same factors in other libraries give the same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import tensorly
import torch
from lycoris.functional import loha, lokr
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

from superlora_cli.adapter.attach import SuperLora, attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.factors import expand
from superlora_cli.adapter.shapes import UnitShape
from superlora_cli.adapter.targets import Target

X = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
EXECUTIONS = ("factored", "materialised")


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16))


def ours(method: str, rank: int, values: dict[str, Tensor], **knobs: Any) -> tuple[nn.Module, SuperLora]:
    model = linear()
    config = AdapterConfig.from_knobs(method, rank=rank, **knobs)
    adapter = attach(model, [Target("0", 0, 16, (16, 24), True)], config)
    with torch.no_grad():
        for name, value in values.items():
            adapter.factors[name][0, 0].copy_(value)
    return model, adapter


def theirs(config: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    model = get_peft_model(linear(), config)
    generator = torch.Generator().manual_seed(1)
    values = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator)
            values[name.removeprefix("base_model.model.0.").replace(".default", "").removesuffix(".weight")] = parameter
    return model.eval(), values


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("alpha", [3, 12])
def test_lora_is_pefts(execution: str, alpha: int) -> None:
    model, values = theirs(LoraConfig(r=3, lora_alpha=alpha, target_modules=["0"]))
    factors = {"b0_k1_A1": values["lora_B"], "b0_k1_A2": values["lora_A"].T}
    own, adapter = ours("lora", 3, factors, alpha=alpha, execution=execution)
    torch.testing.assert_close(own(X), model(X))
    own(X).square().sum().backward()
    model(X).square().sum().backward()
    for name, peer in (("b0_k1_A1", values["lora_B"].grad), ("b0_k1_A2", values["lora_A"].grad.T)):
        torch.testing.assert_close(adapter.factors[name].grad[0, 0], peer, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_lokr_is_pefts_and_lycoris(execution: str) -> None:
    model, values = theirs(LoKrConfig(r=2, alpha=2, target_modules=["0"], decompose_factor=4))
    w1, a, b = values["lokr_w1"], values["lokr_w2_a"], values["lokr_w2_b"]
    factors = {"b0_k1_core": w1, "b0_k2_A1": a, "b0_k2_A2": b.T}
    own, adapter = ours("lokr", 2, factors, split_dim=4, execution=execution)
    torch.testing.assert_close(own(X), model(X))
    delta = lokr.diff_weight(w1, None, None, None, a, b, None, gamma=2.0)  # LyCORIS divides by the rank
    torch.testing.assert_close(adapter.compute()[0], delta.reshape(16, 24))


def test_loha_is_pefts_and_lycoris() -> None:
    model, values = theirs(LoHaConfig(r=2, alpha=2, target_modules=["0"]))
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    w1a, w1b, w2a, w2b = (values[name] for name in names)
    factors = {"b0_k1_A1": w1a, "b0_k1_A2": w1b.T, "b0_k2_A1": w2a, "b0_k2_A2": w2b.T}
    own, adapter = ours("loha", 2, factors)
    torch.testing.assert_close(own(X), model(X))
    delta = loha.diff_weight(w1b, w1a, w2b, w2a, None, None, gamma=torch.tensor(1.0))
    torch.testing.assert_close(adapter.compute()[0], delta)


@pytest.mark.parametrize(("sides", "ranks"), [((6, 5), (2, 3)), ((4, 5, 6), (2, 3, 4)), ((3, 4, 2, 5), (2, 2, 2, 2))])
def test_tucker_is_tensorlys(sides: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    tensorly.set_backend("pytorch")
    core = torch.randn(1, 1, *ranks, dtype=torch.float64)
    planes = [torch.randn(1, 1, d, r, dtype=torch.float64) for d, r in zip(sides, ranks, strict=True)]
    tensors = {"core": core} | {f"A{m}": plane for m, plane in enumerate(planes, 1)}
    found = expand(UnitShape(sides, ranks, "dense"), tensors)[0, 0]
    torch.testing.assert_close(found, tensorly.tucker_to_tensor((core[0, 0], [plane[0, 0] for plane in planes])))


@pytest.mark.parametrize("sides", [(6, 5), (4, 5, 6), (3, 4, 2, 5), (2, 3, 2, 3, 2)])
def test_cp_is_tensorlys(sides: tuple[int, ...]) -> None:
    tensorly.set_backend("pytorch")
    weights = torch.randn(1, 1, 3, dtype=torch.float64)
    planes = [torch.randn(1, 1, d, 3, dtype=torch.float64) for d in sides]
    tensors = {"core": weights} | {f"A{m}": plane for m, plane in enumerate(planes, 1)}
    found = expand(UnitShape(sides, (3,) * len(sides), "diagonal"), tensors)[0, 0]
    torch.testing.assert_close(found, tensorly.cp_to_tensor((weights[0, 0], [plane[0, 0] for plane in planes])))
