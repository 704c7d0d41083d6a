"""`projection: steepest`: numbers where the first gradients are largest, at positions that the file stores."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import superlora_cli
from superlora_cli.adapter import informed, store
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.informed import inform
from superlora_cli.adapter.positions import pack, unpack
from superlora_cli.adapter.shapes import position_bytes
from superlora_cli.errors import MismatchError, UsageError
from tests.adapter.test_informed import adapted, gradient_of, loss


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 99))
def test_positions_are_packed_in_the_bytes_that_were_counted(n: int, share: float, seed: int) -> None:
    k, generator = max(1, round(share * n)), torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(n, generator=generator)[:k].sort().values for _ in range(2)])
    packed = pack(rows, n)
    assert packed.shape == (2, position_bytes(k, n))
    assert torch.equal(unpack(packed, k, n), rows)


def test_they_take_little_more_than_the_fewest_bits() -> None:
    n, k = 768 * 768, 5899
    fewest = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    assert position_bytes(k, n) * 8 < 1.07 * fewest


@pytest.mark.parametrize(
    "packed",
    [
        pack(torch.tensor([[0, 3, 4, 10]]), 11) ^ 255,
        pack(torch.tensor([[0, 3, 4]]), 11),
        pack(torch.tensor([[0, 3, 4, 11]]), 11),
        pack(torch.tensor([[1, 0, 4, 10]]), 11),
        pack(torch.tensor([[0, 3, 4, 10]]), 11).long(),
    ],
)
def test_other_bytes_are_no_positions(packed: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="positions"):
        unpack(packed, 4, 11)


def at(adapter: nn.Module) -> list[list[int]]:
    """The positions of each group's numbers."""
    return [row.tolist() for rows in adapter.positions.values() for row in rows]  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("held", [1, informed.HELD])
@pytest.mark.parametrize("groups", ["weight", 1])
def test_numbers_are_placed_where_the_gradient_is_largest(
    groups: str | int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informed, "HELD", held)
    knobs = {"method": "shira", "rank": None, "projection": "steepest", "ratio": 0.1, "groups": groups}
    gradients = [gradient_of(0).flatten(), gradient_of(2)[4:12].flatten()]
    model, adapter = adapted(**knobs)
    inform(model, adapter, lambda: loss(model).backward())
    wanted = [*gradients] if groups == "weight" else [torch.cat(gradients)]
    counts = [math.ceil(0.1 * len(gradient)) for gradient in wanted]
    found = [gradient.abs().topk(k).indices.sort().values.tolist() for gradient, k in zip(wanted, counts, strict=True)]
    assert at(adapter) == found


def test_a_step_before_they_are_chosen_is_refused(tmp_path: Path) -> None:
    model, adapter = adapted(method="shira", rank=None, projection="steepest", ratio=0.1)
    plain, _ = adapted(method="lora")
    x = torch.ones(1, 6)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    with pytest.raises(UsageError, match="its positions come from the first gradients"):
        model(x)
    with pytest.raises(UsageError, match="its positions are not chosen"):
        superlora_cli.save(model, tmp_path / "adapter.safetensors")
    inform(model, adapter, lambda: loss(model).backward())
    loss(model).backward()
    assert all(factor.grad.any() for factor in adapter.factors.values())


def test_they_are_saved_loaded_and_part_of_the_state(tmp_path: Path) -> None:
    knobs = {"method": "shira", "projection": "steepest", "ratio": 0.1}
    models = []
    for _ in range(3):
        torch.manual_seed(0)
        models.append(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 12)))
    model, loaded, copied = models
    adapter = superlora_cli.attach(model, ["0", "2"], **knobs)
    inform(model, adapter, lambda: loss(model).backward())
    for factor in adapter.factors.values():
        nn.init.normal_(factor)
    superlora_cli.save(model, tmp_path / "adapter.safetensors")
    stored = store.load(tmp_path / "adapter.safetensors")
    assert stored.number_bytes == adapter.plan.bytes == 4 * (5 + 10) + position_bytes(5, 48) + position_bytes(10, 96)
    assert at(superlora_cli.load(loaded, tmp_path / "adapter.safetensors")) == at(adapter)
    superlora_cli.attach(copied, ["0", "2"], **knobs)
    copied.load_state_dict(model.state_dict())
    x = torch.ones(1, 6)
    assert torch.equal(loaded(x), model(x))
    assert torch.equal(copied(x), model(x))
    damaged = {name: packed ^ 255 for name, packed in stored.positions.items()}
    with pytest.raises(MismatchError, match="positions do not fit the knobs"):
        store.restore(adapter, replace(stored, positions=damaged), where="here")


def test_what_cannot_be_combined_with_it_says_so() -> None:
    with pytest.raises(UsageError, match="init gradient with projection steepest"):
        AdapterConfig.from_knobs("shira", projection="steepest", init="gradient", order=2)
