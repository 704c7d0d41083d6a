"""What must hold for every variant of the family.

Counts, starts and ΔW are compared for every row of the table (its golden numbers too, in test_golden.py); what costs
more is tried with rows that hold every pair of knobs, and on a model with rows that hold every knob.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from superlora_cli.adapter import in_turn as in_turn_module
from superlora_cli.adapter import naive, store
from superlora_cli.adapter.attach import SuperLora, attach, detach
from superlora_cli.adapter.counting import count
from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.in_turn import in_turn
from superlora_cli.adapter.informed import inform
from superlora_cli.adapter.initial import initial
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.merge import merged_rows
from superlora_cli.adapter.projections import is_nonlinear
from superlora_cli.adapter.targets import Target, TargetShape
from tests.adapter.variants import ACTIVATED, EQUAL, PROJECTED, SINGLE, STACKED, VARIANTS, base_of, config_of, covering

ALL = pytest.mark.parametrize("name", VARIANTS)
ATTACHED = {**SINGLE, **STACKED, **{name: knobs for name, knobs in PROJECTED.items() if "2D" in name}}
EVERY_PAIR = pytest.mark.parametrize("name", covering({name: knobs for name, (knobs, _) in VARIANTS.items()}, 2))
ON_A_MODEL = pytest.mark.parametrize("name", covering(ATTACHED, 1))
WITHOUT_DELTA_TOO = pytest.mark.parametrize("name", [*covering(ATTACHED, 1), *ACTIVATED])


def random_params(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("name", [*VARIANTS, *ACTIVATED])
def test_count_is_the_number_of_elements(name: str) -> None:
    knobs, targets = VARIANTS[name] if name in VARIANTS else (ACTIVATED[name], EQUAL)
    counted = count(config_of(knobs), targets)
    assert counted.adapter == sum(tensor.numel() for tensor in initial(counted.plan).values())
    assert counted.entries == sum(unit["count"] * unit["params"] for unit in counted.units)
    assert counted.entries == counted.adapter or counted.plan.config.inner


@ALL
def test_delta_starts_at_exactly_zero(name: str) -> None:
    shapes = plan(config_of(VARIANTS[name][0]), VARIANTS[name][1])
    assert all((delta == 0).all() for delta in deltas(shapes, initial(shapes), Frozen(shapes, base=base_of(shapes))))


@EVERY_PAIR
def test_every_factor_gets_a_gradient_within_two_steps(name: str) -> None:
    knobs, targets = VARIANTS[name]
    shapes = plan(config_of(knobs), targets)
    params = {key: value.double().requires_grad_() for key, value in initial(shapes).items()}
    frozen = Frozen(shapes, dtype=torch.float64, base=base_of(shapes))
    seen = set()
    wanted = [torch.randn(t.rows, t.columns, dtype=torch.float64) for t in targets]
    for _ in range(2):
        loss = sum(
            ((delta - want) ** 2).sum() for delta, want in zip(deltas(shapes, params, frozen), wanted, strict=True)
        )
        grads = torch.autograd.grad(loss, list(params.values()))
        with torch.no_grad():
            for (key, value), grad in zip(params.items(), grads, strict=True):
                seen |= {key} if grad.abs().max() > 0 else set()
                value -= 1e-3 * grad
    assert seen == set(params)


@ALL
def test_fast_path_is_the_naive_oracle(name: str) -> None:
    knobs, targets = VARIANTS[name]
    shapes = plan(config_of(knobs), targets)
    params = random_params(shapes.tensors)
    fast = deltas(shapes, params, Frozen(shapes, dtype=torch.float64, base=base_of(shapes)))
    slow = naive.deltas(shapes, params, base_of(shapes))
    for delta, oracle, target in zip(fast, slow, targets, strict=True):
        assert delta.shape == (target.rows, target.columns)
        torch.testing.assert_close(delta, oracle)


@EVERY_PAIR
def test_updates_made_one_after_the_other_are_those_made_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs, targets = VARIANTS[name]
    shapes = plan(config_of(knobs), targets)
    params = random_params(shapes.tensors)
    at_once = deltas(shapes, params, Frozen(shapes, dtype=torch.float64, base=base_of(shapes)))
    for elements in (1, 20, 2**20):  # of a group, made at once
        monkeypatch.setattr(in_turn_module, "ELEMENTS", elements)
        take = in_turn(shapes, params, base_of(shapes))
        for delta in at_once:
            parts = [take(delta.numel() // 2), take(delta.numel() - delta.numel() // 2)]
            assert not any(part.requires_grad for part in parts)
            torch.testing.assert_close(torch.cat(parts).view(delta.shape), delta)


@pytest.mark.parametrize("groups", [1, 3, "weight"])
def test_updates_in_turn_hold_little(groups: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = plan(config_of({"rank": 2, "groups": groups}), [TargetShape(f"w{i}", 10, 7) for i in range(4)])
    monkeypatch.setattr(in_turn_module, "ELEMENTS", 20)
    take = in_turn(shapes, random_params(shapes.tensors))
    held = [take(10).untyped_storage().nbytes() for _ in range(28)]
    assert max(held) <= 20 * 8 < 70 * 8


@EVERY_PAIR
def test_gradients_are_those_of_the_naive_oracle(name: str) -> None:
    knobs, targets = VARIANTS[name]
    shapes = plan(config_of(knobs), targets)
    params = random_params(shapes.tensors)
    weights = [torch.randn(t.rows, t.columns, dtype=torch.float64) for t in targets]

    def gradients(updates: list[Tensor]) -> tuple[Tensor, ...]:
        loss = sum((update * weight).sum() for update, weight in zip(updates, weights, strict=True))
        return torch.autograd.grad(loss, list(params.values()))

    fast = gradients(deltas(shapes, params, Frozen(shapes, dtype=torch.float64, base=base_of(shapes))))
    slow = gradients(naive.deltas(shapes, params, base_of(shapes)))
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other)


class Block(nn.Module):
    """An attention-like block: fused qkv, its own output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 36), nn.Linear(36, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(torch.tanh(self.qkv(x)))


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


TARGETS = [Target(f"{block}.qkv", start, start + 12, (12, 8), False) for block in (0, 1) for start in (0, 24)]


def adapted(name: str) -> tuple[nn.Sequential, SuperLora]:
    model = small_model()
    adapter = attach(model, TARGETS, config_of({**ATTACHED, **ACTIVATED}[name]))
    if adapter.config.informed:
        inform(model, adapter, lambda: model(INPUT).square().mean().backward())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.copy_(torch.randn(factor.shape, generator=generator))
    return model, adapter


INPUT = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(3))


@WITHOUT_DELTA_TOO
def test_fresh_adapter_changes_nothing(name: str) -> None:
    model = small_model()
    plain = model(INPUT)
    attach(model, TARGETS, config_of({**ATTACHED, **ACTIVATED}[name]))
    with torch.no_grad():
        assert torch.equal(model(INPUT), plain)


def merged_by_rows(base: nn.Module, adapter: SuperLora) -> dict[str, Tensor]:
    """The base's state with ΔW added as `superlora merge` does it: some rows after the other."""
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    take = in_turn(adapter.plan, dict(adapter.factors.items()), adapter.from_base)
    for change in merged_rows(adapter.targets, take, lambda name, start, stop: state[name][start:stop]):
        state[change.name][change.row : change.row + len(change.after)] = change.after
    return state


@ON_A_MODEL
def test_merged_outputs_are_the_adapted_ones_and_other_rows_keep_their_bits(name: str) -> None:
    model, adapter = adapted(name)
    base = small_model()
    output = model(INPUT)
    state = merged_by_rows(base, adapter)
    detach(model, merge=True)
    assert type(model[0].qkv) is nn.Linear
    assert list(model.state_dict()) == list(base.state_dict())
    torch.testing.assert_close(model(INPUT), output)
    for key, tensor in base.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], state[key])
        if key.endswith("qkv.weight"):
            assert torch.equal(state[key][12:24], tensor[12:24])  # k
            assert not torch.equal(state[key][:12], tensor[:12])
        else:
            assert torch.equal(state[key], tensor)


@WITHOUT_DELTA_TOO
def test_removing_gives_the_base_back(name: str) -> None:
    model, _ = adapted(name)
    detach(model)
    base = small_model()
    assert torch.equal(model(INPUT), base(INPUT))
    assert not hasattr(model, "superlora")


@WITHOUT_DELTA_TOO
def test_one_backward_a_step_gives_the_gradients_of_plain_autograd(name: str) -> None:
    model, adapter = adapted(name)
    model(INPUT).square().mean().backward()
    plain = {key: factor.grad.clone() for key, factor in adapter.factors.items()}
    model.zero_grad(set_to_none=True)
    with adapter.one_step():  # two micro-batches
        for half in (INPUT[:2], INPUT[2:]):
            (model(half).square().sum() / INPUT.numel()).backward()
    for key, factor in adapter.factors.items():
        torch.testing.assert_close(factor.grad, plain[key], rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for key, parameter in model.named_parameters() if "superlora" not in key)


@WITHOUT_DELTA_TOO
def test_copies_and_pickles_give_the_same_outputs(name: str) -> None:
    model, _ = adapted(name)
    output = model(INPUT)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        assert torch.equal(other(INPUT), output)
        assert other.superlora is not model.superlora
        with torch.no_grad():
            for factor in other.superlora.factors.values():
                factor.add_(0.5)
        assert not torch.equal(other(INPUT), output)
        assert torch.equal(model(INPUT), output)


@WITHOUT_DELTA_TOO
def test_stored_and_restored_outputs_are_equal(name: str, tmp_path: Path) -> None:
    model, adapter = adapted(name)
    output = model(INPUT)
    fresh = small_model()
    sha256, dtype = store.digest_base(fresh, TARGETS)
    stored = store.StoredAdapter.of(
        adapter.config,
        TARGETS,
        dict(adapter.factors.items()),
        patterns=("*.qkv[q]", "*.qkv[v]"),
        base=("small", sha256, dtype),
        metrics={"accuracy": 0.5},
        positions=adapter.positions,
    )
    file = tmp_path / "adapter.safetensors"
    stored.save(file, force=True)
    again = store.load(file)
    assert again.config == adapter.config
    assert again.to_bytes() == file.read_bytes()
    restored = attach(fresh, TARGETS, again.config)
    store.check_base(small_model(), TARGETS, again, where="here")
    store.restore(restored, again, where="here")
    assert torch.equal(fresh(INPUT), output)


@pytest.mark.parametrize("projection", ["nonlinear", "nonlinear_v2"])
def test_nonlinear_projections_move_from_their_start(projection: str) -> None:
    assert is_nonlinear(projection)
    shapes = plan(config_of({"rank": 2, "projection": projection, "ratio": 0.5}), [TargetShape("w", 8, 8)])
    start = initial(shapes)
    assert all((tensor != 0).any() for tensor in start.values())
    moved = {key: value * 1.1 for key, value in start.items()}
    assert deltas(shapes, moved, Frozen(shapes))[0].abs().max() > 0.01


def test_a_folded_kronecker_product_is_torch_kron_flattened() -> None:
    shapes = plan(config_of({"splits": 2, "split_dim": 3, "rank": 2, "terms": 2}), [TargetShape("w", 9, 11)])
    params = random_params(shapes.tensors)  # 99 elements: side 10, factors 3 and 4, product 12 × 12
    left, out, into = (params[f"b0_k{name}"][0] for name in ("1_core", "2_A1", "2_A2"))
    product = sum(torch.kron(left[t], out[t] @ into[t].T) for t in range(2))
    delta = deltas(shapes, params, Frozen(shapes, dtype=torch.float64, base=base_of(shapes)))[0]
    torch.testing.assert_close(delta, product.flatten()[:99].view(9, 11))


@pytest.mark.parametrize(
    "name",
    [
        "lora",
        "lorta 3D",
        "CP 5D diagonal",
        "lokr, 3 terms",
        "lonkr",
        "loha",
        "linear 0.5 of 2D",
        "nonlinear 0.3 of 2D",
        "unilora",
        "vera",
        "tinylora",
        "fourierft",
        "dct by weight",
    ],
)
def test_deltas_pass_gradcheck(name: str) -> None:
    knobs, targets = VARIANTS[name]
    shapes = plan(config_of(knobs), targets)
    params = random_params(shapes.tensors)
    frozen = Frozen(shapes, dtype=torch.float64, base=base_of(shapes))

    def flat(*values: Tensor) -> Tensor:
        return torch.cat([delta.flatten() for delta in deltas(shapes, dict(zip(params, values, strict=True)), frozen)])

    assert torch.autograd.gradcheck(flat, tuple(params.values()))
