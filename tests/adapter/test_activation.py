"""`activation`: B σ(A x) beside the weight. What has a ΔW is in the contract of all variants, the rest is here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from superlora_cli.adapter import naive
from superlora_cli.adapter.attach import attach, detach, settle
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.factored import factored
from superlora_cli.adapter.forms import own_forms
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.in_turn import in_turn
from superlora_cli.adapter.informed import inform
from superlora_cli.adapter.initial import initial
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Activated, LowRank
from superlora_cli.errors import RunError, UsageError
from tests.adapter.test_contract import INPUT, TARGETS, adapted, random_params, small_model
from tests.adapter.variants import ACTIVATED, EQUAL, base_of, config_of

ALL = pytest.mark.parametrize("name", ACTIVATED)


@ALL
def test_outputs_and_gradients_are_those_of_the_naive_oracle(name: str) -> None:
    shapes = plan(config_of(ACTIVATED[name]), EQUAL)
    params = random_params(shapes.tensors)
    inputs = [torch.randn(5, target.columns, dtype=torch.float64) for target in EQUAL]
    weights = [torch.randn(5, target.rows, dtype=torch.float64) for target in EQUAL]
    frozen = Frozen(shapes, dtype=torch.float64, base=base_of(shapes))
    updates = factored(shapes, frozen.factors(shapes, params))
    assert all(isinstance(update, Activated) for update in updates)
    fast = [update(x) for update, x in zip(updates, inputs, strict=True)]  # type: ignore[operator]
    slow = naive.outputs(shapes, params, inputs, base_of(shapes))

    def gradients(outputs: list[Tensor]) -> tuple[Tensor, ...]:
        loss = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
        return torch.autograd.grad(loss, list(params.values()))

    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients(fast), gradients(slow))


@ALL
def test_every_factor_gets_a_gradient_within_two_steps(name: str) -> None:
    model = small_model()
    adapter = attach(model, TARGETS, config_of(ACTIVATED[name]))
    seen = set()
    for _ in range(2):
        (model(INPUT) - 1).square().sum().backward()
        with torch.no_grad():
            for key, factor in adapter.factors.items():
                assert factor.grad is not None
                seen |= {key} if factor.grad.abs().max() > 0 else set()
                factor -= 0.1 * factor.grad
                factor.grad = None
    assert seen == set(adapter.factors)


def test_with_the_identity_it_is_lora() -> None:
    assert AdapterConfig.from_knobs("loda", activation="identity", rank=2) == AdapterConfig.from_knobs("lora", rank=2)
    left, right, x = torch.randn(6, 2), torch.randn(2, 5), torch.randn(3, 5)
    torch.testing.assert_close(Activated(left, right, "identity")(x), x @ LowRank(left, right).dense().T)


def test_sigma_sees_numbers_of_the_scale_of_the_inputs_at_the_start() -> None:
    for init, close in (("unit", 0.05), ("lora", 0.5)):
        shapes = plan(AdapterConfig.from_knobs("loda", rank=8, init=init), TARGETS_OF_WIDTH_400)
        (update,) = factored(shapes, initial(shapes))
        inner = torch.randn(2000, 400) @ update.tensors[1].T
        assert float(inner.std()) == pytest.approx(1, abs=close)


TARGETS_OF_WIDTH_400 = [Target("fc", 0, 30, (30, 400), False).flat]


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"method": "lorta"}, "does not keep the rows"),
        ({"method": "dense"}, "order 1 has no factors"),
        ({"method": "lokr"}, "a Kronecker product is not one pair of factors"),
        ({"method": "loha"}, "an elementwise product"),
        ({"method": "hira"}, "product with the base's weights"),
        ({"method": "randlora"}, "a sum of several terms"),
        ({"method": "unilora"}, "relative to its start with inner.per all"),
        ({"method": "lora", "projection": "linear"}, "projection linear mixes"),
        ({"method": "lora", "bits": 4}, "relative to its start with bits 4"),
        ({"method": "lora", "rank": [2, "full"]}, "the last mode has no factor"),
        ({"method": "lora", "execution": "materialised"}, "computes ΔW"),
        ({"method": "lora", "freeze": ["A1"]}, "σ would start at zero"),
        ({"method": "vera", "diagonals": [2]}, "σ would start at zero"),
    ],
)
def test_what_has_no_two_factors_a_weight_is_refused(knobs: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why) as raised:
        config_of({**knobs, "activation": "relu"})
    assert raised.value.where == "adapter.activation"


class Tied(nn.Module):
    """A language model whose last layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize(
    ("model", "target", "why"),
    [
        (nn.Sequential(nn.Conv2d(2, 3, 3)), Target("0", 0, 3, (3, 2, 3, 3), True), "not a plain nn.Linear"),
        (Tied(), Target("head", 0, 7, (7, 4), True, tied=("embed",)), "not a plain nn.Linear"),
    ],
)
def test_layers_that_are_not_linear_are_refused(model: nn.Module, target: Target, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        attach(model, [target], AdapterConfig.from_knobs("loda", rank=1))
    assert not hasattr(model, "superlora")


def test_weights_of_other_columns_than_the_group_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
    targets = [Target("0", 0, 5, (5, 4), True), Target("1", 0, 6, (6, 5), True)]
    with pytest.raises(UsageError, match="has 4 columns, but its group has 5"):
        attach(model, targets, AdapterConfig(fold="none", rank=1, activation="relu"))


def test_there_is_no_delta_for_anyone() -> None:
    model, adapter = adapted("loda")
    before = model(INPUT)
    for ask in (
        adapter.compute,
        lambda: own_forms(adapter),
        lambda: in_turn(adapter.plan, dict(adapter.factors.items())),
        lambda: detach(model, merge=True),
        adapter.make()[0].dense,
    ):
        with pytest.raises(UsageError, match="σ = gelu has no ΔW, so it cannot be merged"):
            ask()
    settle(model)
    assert torch.equal(model(INPUT), before)


def test_a_weight_says_its_shape_and_refuses_to_be_computed_with() -> None:
    model, _ = adapted("loda")
    weight = model[0].qkv.weight
    assert (weight.shape, weight.dtype, weight.device, weight.size(1), len(weight)) == (
        (36, 8), torch.float32, torch.device("cpu"), 8, 36,
    )  # fmt: skip
    for use in (lambda: weight + 1, lambda: weight.data, lambda: weight[0], lambda: INPUT @ weight.T):
        with pytest.raises(RunError, match="reads layer"):
            use()
    assert "qkv.weight" in "".join(model.state_dict())


def test_a_layer_whose_weight_is_used_by_another_fails_loudly() -> None:
    model = nn.MultiheadAttention(8, 2)
    attach(model, [Target("out_proj", 0, 8, (8, 8), True)], AdapterConfig.from_knobs("loda", rank=1))
    with pytest.raises(RunError, match="reads layer"):
        model(INPUT, INPUT, INPUT)


@ALL
def test_all_ways_to_run_it_agree(name: str) -> None:
    model, adapter = adapted(name)
    output = model(INPUT)
    output.square().sum().backward()
    grads = {key: factor.grad for key, factor in adapter.factors.items()}
    adapter.zero_grad(set_to_none=True)
    recomputed = checkpoint(lambda x: model[1](model[0](x)), INPUT, use_reentrant=False)
    torch.testing.assert_close(recomputed, output)
    recomputed.square().sum().backward()
    torch.testing.assert_close({key: factor.grad for key, factor in adapter.factors.items()}, grads)
    with adapter.kept():
        torch.testing.assert_close(model.eval()(INPUT), output)
    batched = torch.func.vmap(model)(INPUT)
    torch.testing.assert_close(batched, output)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(INPUT)
    low = model.to(torch.bfloat16)(INPUT.bfloat16())
    for other in (mixed, low):
        torch.testing.assert_close(other.float(), output, rtol=0.1, atol=0.3 * float(output.detach().abs().mean()))


@pytest.mark.parametrize("init", ["gradient", "activations"])
def test_it_starts_from_batches_as_lora_does(init: str) -> None:
    model = small_model()
    before = model(INPUT)
    adapter = attach(model, TARGETS, AdapterConfig.from_knobs("loda", rank=2, init=init))
    drawn = adapter.factors["b0_k1_A2"].detach().clone()
    inform(model, adapter, lambda: model(INPUT).square().sum().backward())
    assert not torch.equal(adapter.factors["b0_k1_A2"], drawn)
    assert torch.equal(model(INPUT), before)
