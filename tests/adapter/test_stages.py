"""Groups of layers that are trained one after another: every trained number in exactly one, and nothing else moves."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from superlora_cli.adapter.attach import SuperLora, attach
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.stages import stages
from superlora_cli.errors import UsageError
from tests.adapter.test_contract import ATTACHED, INPUT, TARGETS, adapted, small_model
from tests.adapter.variants import ACTIVATED, config_of

SEPARATE = {
    "dense", "lora", "lora with a core", "2D by layer", "2D by layer, not folded", "lorta 3D by weight", "lokr",
    "krona", "loha", "vera", "randlora", "lora_xs", "tinylora", "nola", "fourierft", "hira", "ia3", "oft", "dora",
    "lotr by layer", "lotr, 2 groups", "fourierft of 4 bits", "2D of fastfood, 2 groups", "loda",
    "lorta 3D of rotations", "linear 0.5 of 2D",
}  # fmt: skip
TOGETHER = {
    "dense in 3 groups": "share units so that they make 1",
    "2D, not folded": "share units so that they make 1",
    "lotr": "share units so that they make 1",
    "lorta 4D, 3 groups": "share units so that they make 1",
    "unilora": "one θ makes the factors of all layers",
    "vblora": "one θ makes the factors of all layers",
}


def gradients(model: nn.Module, adapter: SuperLora, *, held: bool = False) -> dict[str, Tensor]:
    adapter.zero_grad(set_to_none=True)
    if held:
        with adapter.one_step():
            model(INPUT).square().sum().backward()
    else:
        model(INPUT).square().sum().backward()
    return {name: factor.grad for name, factor in adapter.factors.items() if factor.grad is not None}


@pytest.mark.parametrize("name", sorted(SEPARATE))
def test_each_row_is_trained_in_one_stage_with_the_gradient_it_has_otherwise(name: str) -> None:
    model, adapter = adapted(name)
    whole = gradients(model, adapter)
    seen: Counter[tuple[str, int]] = Counter()
    for stage in stages(adapter.plan, 2):
        adapter.tuned = frozenset(stage.targets)
        for held in (False, True):
            found = gradients(model, adapter, held=held)
            for key, tensor in whole.items():
                inside = torch.zeros(len(tensor), dtype=torch.bool)
                for _, first, stop in (row for row in stage.rows if row[0] == key):
                    inside[first:stop] = True
                wanted = tensor.clone()
                wanted[~inside] = 0
                torch.testing.assert_close(found.get(key, torch.zeros_like(tensor)), wanted, rtol=1e-4, atol=1e-5)
        seen += Counter((key, row) for key, first, stop in stage.rows for row in range(first, stop))
    assert seen == Counter((key, row) for key, tensor in whole.items() for row in range(len(tensor)))


@pytest.mark.parametrize("name", TOGETHER)
def test_units_of_several_layers_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=TOGETHER[name]):
        stages(plan(config_of({**ATTACHED, **ACTIVATED}[name]), [target.flat for target in TARGETS]), 2)


def test_more_groups_than_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="3 groups of 2 layers") as raised:
        stages(plan(config_of(ATTACHED["lora"]), [target.flat for target in TARGETS]), 3)
    assert raised.value.hint == "at most 2"


def saved(model: nn.Module) -> list[tuple[int, ...]]:
    """The shapes of all tensors that a forward pass keeps for the backward pass, but for weights and factors."""
    found: list[tuple[int, ...]] = []
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own and tensor.dim() == INPUT.dim():
            found.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(INPUT)
    return found


@pytest.mark.parametrize("execution", ["factored", "materialised"])
def test_layers_before_the_group_keep_nothing_and_those_after_it_not_their_inputs(execution: str) -> None:
    model = small_model()
    adapter = attach(model, TARGETS, config_of({"method": "lora", "rank": 1, "execution": execution}))
    first, last = stages(adapter.plan, 2)
    usual = saved(model)
    adapter.tuned = frozenset(first.targets)
    lower = saved(model)
    adapter.tuned = frozenset(last.targets)
    upper = saved(model)
    inputs, tanh = (5, 3, 8), (5, 3, 36)
    assert usual == [inputs, tanh, inputs, tanh]
    assert lower == [inputs, tanh, tanh]
    assert upper == [inputs, tanh]


def test_second_derivatives_pass_through_layers_that_are_not_trained() -> None:
    model = small_model()
    adapter = attach(model, TARGETS, config_of({"method": "lora", "rank": 1, "execution": "factored"}))
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.fill_(0.3)

    def penalty() -> dict[str, Tensor]:
        adapter.zero_grad(set_to_none=True)
        x = INPUT.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        return {name: factor.grad for name, factor in adapter.factors.items() if factor.grad is not None}

    whole = penalty()
    for stage in stages(adapter.plan, 2):
        adapter.tuned = frozenset(stage.targets)
        found = penalty()
        for name, first, stop in stage.rows:
            torch.testing.assert_close(found[name][first:stop], whole[name][first:stop])
