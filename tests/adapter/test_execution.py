"""The factored path gives what the materialised one gives, wherever it is allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from superlora_cli.adapter.attach import SuperLora, attach
from superlora_cli.adapter.factored import why_not_factored
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Kronecker
from superlora_cli.errors import UsageError
from tests.adapter.test_contract import ATTACHED, INPUT, ON_A_MODEL, TARGETS, small_model
from tests.adapter.variants import config_of

FACTORED = {
    "lora", "lora, Kaiming", "lora, from activations", "lora, alpha", "lora, rslora", "lora with a core",
    "2D by layer, not folded", "2D, not folded", "lokr", "lokr, low-rank left", "lokr, 3 terms", "krona",
    "lotr", "lotr by layer", "lotr, 2 groups", "stack, Tucker", "stack, CP", "fact_tk", "cara",
    "vera", "nola", "lora, A frozen", "lokr, left frozen", "lokr, right frozen", "lokr, right core only",
    "lora_xs", "tinylora", "tinylora, one θ", "lora, A from the base", "fact_tk on singular vectors",
    "lora of bfloat16",
}  # fmt: skip


def trained(knobs: dict[str, Any], execution: str) -> tuple[nn.Module, SuperLora]:
    model = small_model()
    adapter = attach(model, TARGETS, config_of({**knobs, "execution": execution}))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.copy_(torch.randn(factor.shape, generator=generator))
    return model.double(), adapter


def gradients(model: nn.Module, adapter: SuperLora, held: bool) -> tuple[Tensor, dict[str, Tensor]]:
    x = INPUT.double().requires_grad_()
    if held:
        with adapter.one_step():
            output = model(x)
            output.square().sum().backward()
    else:
        output = model(x)
        output.square().sum().backward()
    assert x.grad is not None
    return output, {"input": x.grad} | {name: p.grad for name, p in adapter.factors.items() if p.grad is not None}


def test_the_factored_variants_are_the_expected_ones() -> None:
    allowed = {name for name, knobs in ATTACHED.items() if why_not_factored(trained(knobs, "auto")[1].plan) is None}
    assert allowed == FACTORED


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("name", sorted(FACTORED))
def test_both_paths_give_the_same_outputs_and_gradients(name: str, held: bool) -> None:
    found = []
    for execution in ("factored", "materialised"):
        model, adapter = trained(ATTACHED[name], execution)
        assert adapter.factored == (execution == "factored")
        found.append(gradients(model, adapter, held))
    (output, grads), (other_output, other_grads) = found
    torch.testing.assert_close(output, other_output)
    assert grads.keys() == other_grads.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[key])


@ON_A_MODEL
def test_asking_for_a_path_that_is_not_there_says_why(name: str) -> None:
    if name in FACTORED:
        return
    with pytest.raises(UsageError, match="factored execution is impossible"):
        trained(ATTACHED[name], "factored")


@pytest.mark.parametrize(("f", "d", "e", "rank", "terms"), [(2, 3, 3, 1, 1), (3, 2, 4, 2, 3)])
def test_kronecker_update_on_activations_is_torch_kron(f: int, d: int, e: int, rank: int, terms: int) -> None:
    torch.manual_seed(0)
    left, out, into = torch.randn(terms, f, f), torch.randn(terms, d, rank), torch.randn(terms, e, rank)
    rows, columns = f * d - 1, f * e - 1
    delta = sum(torch.kron(left[t], out[t] @ into[t].T) for t in range(terms))[:rows, :columns]
    update = Kronecker(left, out, into, rows, columns)
    x = torch.randn(7, columns)
    torch.testing.assert_close(update.dense(), delta)
    torch.testing.assert_close(update(x), x @ delta.T)
    dense_right = Kronecker(left, out @ into.mT, None, rows, columns)
    torch.testing.assert_close(dense_right(x), x @ delta.T)
    for form in (update, dense_right, Kronecker(left, out, into, f * d, f * e)):  # the last one pads nothing
        x = torch.randn(form.columns, 7).T
        torch.testing.assert_close(form(x), x @ form.dense().T)


def test_auto_takes_the_cheaper_path() -> None:
    wide = nn.Sequential(nn.Linear(64, 64))

    target = [Target("0", 0, 64, (64, 64), True)]
    assert attach(wide, target, config_of({"method": "lora", "rank": 2})).factored
    assert not attach(nn.Sequential(nn.Linear(64, 64)), target, config_of({"method": "lora", "rank": 32})).factored


class Tapered(nn.Module):
    """Layers of different widths, as in Swin; with `skew`, of two widths within one block."""

    def __init__(self, skew: bool) -> None:
        super().__init__()
        wide = nn.ModuleDict({"a": nn.Linear(12, 20), "b": nn.Linear(20, 6)})
        even = nn.ModuleDict({"a": nn.Linear(12, 12), "b": nn.Linear(12, 6)})
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 12)}), wide if skew else even]
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block["b"](torch.tanh(block["a"](x)))
        return x


def tapered(knobs: dict[str, Any], execution: str, *, skew: bool = False) -> tuple[nn.Module, SuperLora]:
    torch.manual_seed(0)
    model = Tapered(skew).double()
    names = ("blocks.0.a", "blocks.0.b", "blocks.1.a", "blocks.1.b")
    shapes = [tuple(model.get_submodule(name).weight.shape) for name in names]
    targets = [Target(name, 0, shape[0], shape, True) for name, shape in zip(names, shapes, strict=True)]
    adapter = attach(model, targets, config_of({**knobs, "execution": execution})).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.copy_(torch.randn(factor.shape, generator=generator))
    return model, adapter


@pytest.mark.parametrize(
    "knobs",
    [{"method": "lora", "rank": 2}, {"groups": "layer", "fold": "none", "rank": 2},
     {"method": "lokr", "rank": 1, "split_dim": 2}],
)  # fmt: skip
def test_layers_of_different_widths_take_the_factored_path_too(knobs: dict[str, Any]) -> None:
    (output, grads), (other_output, other_grads) = (
        gradients(*tapered(knobs, execution), held=True) for execution in ("factored", "materialised")
    )
    torch.testing.assert_close(output, other_output)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[key])


def test_a_layer_of_two_widths_has_no_common_rows() -> None:
    with pytest.raises(UsageError, match=r"blocks\.1\.a has 12 columns, but its group has 20"):
        tapered({"groups": "layer", "fold": "none", "rank": 2}, "factored", skew=True)
