"""Modules that share one weight: one ΔW for all of them where all are targets in the same rows, else refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import superlora_cli
from superlora_cli.adapter.module import SuperLora
from superlora_cli.errors import MismatchError, UsageError


class Net(nn.Module):
    """v computes with q's weight; w, if there is a `third`, as well."""

    def __init__(self, *, third: bool = False, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v, self.w = (nn.Linear(8, 8) for _ in range(3))
        if tied:
            self.v.weight = self.q.weight
        if third:
            self.w.weight = self.q.weight

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.w(torch.tanh(self.v(torch.tanh(self.q(x)))))
        return made


def adapted(model: nn.Module, targets: list[str], **knobs: Any) -> SuperLora:
    adapter = superlora_cli.attach(model, targets, "lora", rank=2, **knobs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.copy_(torch.randn(factor.shape, generator=generator) * 0.3)
    return adapter


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("execution", ["factored", "materialised"])
@pytest.mark.parametrize("targets", [["q", "v"], ["q[0:4]", "v[0:4]"], ["q[0:2]", "q[4:8]", "v[0:2]", "v[4:8]"]])
def test_both_have_the_one_update_and_merging_adds_it_once(targets: list[str], execution: str) -> None:
    model, base = Net(), Net()
    adapter = adapted(model, targets, execution=execution)
    assert len(adapter.targets) == len(targets) // 2
    wanted = Net()
    with torch.no_grad():
        for target, delta in zip(adapter.targets, adapter.compute(), strict=True):
            wanted.q.weight[target.start : target.stop] += delta
    output = model(X)
    torch.testing.assert_close(output, wanted(X))
    output.square().sum().backward()
    with torch.no_grad():
        assert not torch.allclose(output, base(X))
    superlora_cli.detach(model, merge=True)
    assert model.v.weight is model.q.weight
    torch.testing.assert_close(model(X), output)


def test_the_gradient_is_that_of_both_layers() -> None:
    model, apart = Net(), Net(tied=False)
    apart.v.weight.data.copy_(apart.q.weight)
    one, two = adapted(model, ["q", "v"]), adapted(apart, ["q", "v"])
    with torch.no_grad():
        for name, factor in two.factors.items():
            factor.copy_(one.factors[name][:1].expand_as(factor))
    for each in (model, apart):
        each(X).square().sum().backward()
    for name, factor in one.factors.items():
        torch.testing.assert_close(factor.grad, two.factors[name].grad.sum(0, keepdim=True))


def test_taken_off_it_is_the_base_again_and_a_file_needs_the_same_ties(tmp_path: Path) -> None:
    model = Net()
    adapted(model, ["q", "v"])
    output = model(X)
    superlora_cli.save(model, tmp_path / "tied.safetensors")
    superlora_cli.activate(model, None)
    assert torch.equal(model(X), Net()(X))
    fresh = Net()
    superlora_cli.load(fresh, tmp_path / "tied.safetensors")
    torch.testing.assert_close(fresh(X), output)
    with pytest.raises(MismatchError):
        superlora_cli.load(Net(tied=False), tmp_path / "tied.safetensors", allow_base_mismatch=True)


@pytest.mark.parametrize("targets", [["q"], ["v"], ["q[0:4]", "v"], ["q[0:4]", "v[4:8]"]])
def test_what_only_some_of_them_would_have_is_refused(targets: list[str]) -> None:
    with pytest.raises(UsageError, match="shares its values with"):
        adapted(Net(), targets)


def test_a_third_that_is_no_target_is_named() -> None:
    with pytest.raises(UsageError, match=r"q\.weight: shares its values with w\.weight"):
        adapted(Net(third=True), ["q", "v"])
    model = Net(third=True)
    adapted(model, ["q", "v", "w"])
    output = model(X)
    superlora_cli.detach(model, merge=True)
    torch.testing.assert_close(model(X), output)
