"""What layers share, for how long, and what is refused: the loops themselves are in tests/loops."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

import superlora_cli
from superlora_cli.adapter import hadamard
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.rows_linear import RowsLinear
from superlora_cli.errors import RunError

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
PATHS = pytest.mark.parametrize("execution", ["factored", "materialised"])
KINDS: dict[str, dict[str, Any]] = {
    "rows": {"method": "lora", "rank": 2},
    "Kronecker": {"method": "lokr", "rank": 1, "split_dim": 2},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.v(torch.tanh(self.q(x)))


def adapted(kind: str = "rows", /, **knobs: Any) -> tuple[Net, SuperLora]:
    torch.manual_seed(0)
    model = Net()
    adapter = superlora_cli.attach(model, ["q", "v"], **{**KINDS.get(kind, {"method": kind}), **knobs})
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.normal_(std=0.3)
    return model, adapter


@PATHS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8,), (0, 8), (2, 0, 8), (2, 3, 4, 8)], ids=str)
def test_a_layer_takes_the_inputs_that_a_linear_layer_takes(kind: str, execution: str, shape: tuple[int, ...]) -> None:
    model, _ = adapted(kind, execution=execution)
    x = torch.randn(shape)
    output = model(x)
    output.sum().backward()
    superlora_cli.detach(model, merge=True)
    torch.testing.assert_close(output, model(x))


def test_a_layer_takes_nested_tensors_and_refuses_what_a_linear_layer_refuses() -> None:
    model, _ = adapted(execution="factored")
    pieces = [X[:1], X]
    nested = torch.nested.nested_tensor(pieces, layout=torch.jagged)
    found = pad_sequence(model(nested).unbind(), batch_first=True)
    torch.testing.assert_close(found, pad_sequence([model(piece) for piece in pieces], batch_first=True))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(2, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_leaves_float64_alone(dtype: torch.dtype) -> None:
    model, _ = adapted()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.to(dtype)(X.to(dtype)).dtype == (torch.float64 if dtype == torch.float64 else torch.bfloat16)


def test_second_derivatives_are_right_for_every_kind_of_part() -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 5), (6, 5), (6,), (2, 5), (1, 2), (2, 5))  # x, W, bias, one dense part, one product of two
    x, weight, bias, dense, left, right = (torch.randn(s, generator=generator).double() for s in shapes)
    whole = weight.clone()

    def layer(x: Tensor, bias: Tensor, dense: Tensor, left: Tensor, right: Tensor) -> Tensor:
        rows = torch.cat([whole[:1], whole[1:3] + dense.detach(), whole[3:]])
        return RowsLinear.apply(torch.tanh(x), rows, bias, ((1,), (4,)), dense, left, right @ right.mT @ right)

    inputs = tuple(tensor.requires_grad_() for tensor in (x, bias, dense, left, right))
    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradgradcheck(layer, inputs)


@PATHS
def test_hessian_vector_products_of_the_factors_are_right(execution: str) -> None:
    model, adapter = adapted(execution=execution)
    model.double()
    names = [f"superlora.factors.{name}" for name in adapter.factors]
    values = tuple(factor.detach().clone().requires_grad_() for factor in adapter.factors.values())

    def call(*values: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, values, strict=True)), (X.double(),))

    assert torch.autograd.gradgradcheck(call, values)


@PATHS
def test_inside_one_step_a_forward_without_gradients_is_the_adapted_one(execution: str) -> None:
    model, adapter = adapted(execution=execution)
    output = model(X)
    with adapter.one_step(), torch.no_grad():
        assert torch.equal(model(X), output)


def test_other_parameters_by_functional_call_are_used_inside_a_scope() -> None:
    model, adapter = adapted()
    doubled = {f"superlora.factors.{name}": 2 * factor.detach() for name, factor in adapter.factors.items()}
    wanted = functional_call(model, doubled, (X,))
    with torch.no_grad(), adapter.kept():
        torch.testing.assert_close(functional_call(model, doubled, (X,)), wanted)
    with adapter.one_step():
        assert torch.equal(functional_call(model, doubled, (X,)), wanted)


@PATHS
def test_merging_takes_the_factors_as_they_are_whoever_wrote_to_them(execution: str) -> None:
    model, adapter = adapted(execution=execution)
    with torch.no_grad(), adapter.kept():
        model(X)
        for factor in adapter.factors.values():
            factor.data.mul_(2)
        superlora_cli.detach(model, merge=True)
    twice, _ = adapted(execution=execution)
    for factor in twice.superlora.factors.values():
        factor.data.mul_(2)
    torch.testing.assert_close(model(X), twice(X))


def test_without_gradients_updates_are_made_once_a_call_and_once_where_they_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, adapter = adapted(execution="materialised")
    made: list[int] = []
    compute = adapter.compute
    monkeypatch.setattr(adapter, "compute", lambda: made.append(1) or compute())
    with torch.no_grad():
        model(X), model(X)
        assert len(made) == 2
        with adapter.kept():
            model(X), model(X), model.q(X)
    assert len(made) == 3


MIXED = {"method": "lorta", "rank": 2, "projection": "nonlinear", "ratio": 0.5}


@pytest.mark.parametrize("knobs", [{"method": "vera", "rank": 2}, MIXED], ids=lambda knobs: knobs["method"])
def test_what_is_frozen_outlives_the_modes_in_which_it_was_made(knobs: dict[str, Any]) -> None:
    wanted, _ = adapted(**knobs)
    output = wanted(X)
    transformed, _ = adapted(**knobs)
    hadamard.forget_blocks()
    names = {name: p.detach() for name, p in transformed.named_parameters() if name.startswith("superlora.")}
    torch.func.grad(lambda params: functional_call(transformed, params, (X,)).sum())(names)
    assert torch.equal(transformed(X), output)
    hadamard.forget_blocks()
    model, adapter = adapted(**knobs)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            model(X)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(model(X), output)
    model(X).sum().backward()
    assert all(factor.grad is not None for factor in adapter.factors.values())


def test_a_backward_pass_after_its_step_and_an_optimizer_inside_are_refused() -> None:
    model, adapter = adapted()
    optimizer = torch.optim.AdamW(adapter.parameters(), fused=True)
    with adapter.one_step():
        loss = model(X).sum()
    with pytest.raises(RunError, match=r"backward\(\) inside the with"):
        loss.backward()

    def step_inside(context: Any) -> None:
        with context():
            model(X).sum().backward()
            optimizer.step()

    for context in (adapter.one_step, adapter.kept):
        with pytest.raises(RunError, match=r"step\(\) after the with"):
            step_inside(context)
    optimizer.step()


@pytest.mark.parametrize(
    "write",
    [
        lambda layer: layer.weight.data.mul_(2),
        lambda layer: nn.init.zeros_(layer.weight),
        lambda layer: layer.weight.data.__setitem__(0, 1.0),
        lambda layer: setattr(layer.weight, "data", torch.zeros(8, 8)),
    ],
)
def test_writing_to_a_shown_weight_warns_once(write: Any) -> None:
    model, _ = adapted()
    output = model(X)
    with pytest.warns(UserWarning, match="writes to it are lost") as told:
        write(model.q)
    assert told[0].filename == __file__ or "init" in told[0].filename
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(model.q)
        copy.deepcopy(model.q.weight.detach()).sum()
        assert type(model.q.weight + 0) is Tensor
    assert torch.equal(model(X), output)


def test_reading_a_weight_warns_of_nothing() -> None:
    model, _ = adapted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (model.q.weight.data.sum() + model.q.weight.norm()).isfinite()


def test_an_unfrozen_base_weight_gets_its_gradient() -> None:
    model, _ = adapted()
    stored = model.q._parameters["weight"].requires_grad_()
    model(X).sum().backward()
    assert stored.grad is not None
    assert stored.grad.abs().sum() > 0


def test_replicas_are_refused() -> None:
    model, _ = adapted()
    with pytest.raises(RunError, match="DistributedDataParallel"):
        [module._replicate_for_data_parallel() for module in model.modules()]


@pytest.mark.slow
def test_one_graph_is_refused_and_a_first_call_may_be_compiled() -> None:
    torch._dynamo.reset()
    model, _ = adapted("lorta", rank=2, projection="linear", ratio=0.5)
    with pytest.raises(RunError, match="leave out fullgraph"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(X)
    compiled = torch.compile(model, backend="aot_eager")(X)
    torch.testing.assert_close(compiled, model(X))


def test_running_statistics_stay_and_come_back_with_the_mode_that_was_asked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.InstanceNorm1d(8), nn.BatchNorm1d(8))
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    superlora_cli.attach(model, ["0"], "lora", rank=2)
    again = copy.deepcopy(model)
    for each in (model, again):
        each(X)
        superlora_cli.activate(each, None)
        each(X)
        superlora_cli.detach(each)
        assert all(torch.equal(value, before[name]) for name, value in each.state_dict().items())
        assert type(each[1]) is nn.BatchNorm1d
        assert [module.training for module in each] == [True, True, True, False]
    superlora_cli.attach(model, ["0"], "lora", rank=2)
    model.eval()
    superlora_cli.detach(model)
    assert not any(module.training for module in model)


@PATHS
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("other", [None, "other"])
def test_factors_get_their_gradients_when_their_adapter_is_no_longer_active(
    execution: str, other: str | None, copied: bool
) -> None:
    model, adapter = adapted(execution=execution)
    superlora_cli.attach(model, ["q"], "lora", rank=1, name="other")
    superlora_cli.activate(model, "default")
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.normal_(generator=torch.Generator().manual_seed(1))
    if copied:
        model = copy.deepcopy(model)
        adapter = model.superlora.named["default"]
    factors = list(adapter.factors.values())
    wanted = torch.autograd.grad(model(X).square().sum(), factors)
    for _ in range(2):  # gradients add up
        loss = model(X).square().sum()
        superlora_cli.activate(model, other)
        loss.backward()
        superlora_cli.activate(model, "default")
    for factor, gradient in zip(factors, wanted, strict=True):
        torch.testing.assert_close(factor.grad, 2 * gradient)
    named = model.superlora.named["other"]
    assert all(factor.grad is None for factor in named.factors.values())
