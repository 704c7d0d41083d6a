"""A fit finds what a variant itself made, and comes as near as the closed form or nearer to what it did not."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.fit.solve import fit
from superlora_cli.adapter.fit.units import fit_kronecker, fit_unit, rearrange
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.initial import initial
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.shapes import Plan, UnitShape
from superlora_cli.errors import RunError, UsageError
from tests.adapter.variants import EQUAL, MIXED, VARIANTS, config_of


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made_by(shapes: Plan) -> list[Tensor]:
    """ΔW of random factors of the variant itself."""
    values = {name: random(*value.shape, seed=i) for i, (name, value) in enumerate(initial(shapes).items())}
    return deltas(shapes, values, Frozen(shapes, dtype=torch.float64))


def relative(found: list[Tensor], wanted: list[Tensor]) -> float:
    missed = sum((one.double() - two).square().sum() for one, two in zip(found, wanted, strict=True))
    return float((missed / sum(two.square().sum() for two in wanted)) ** 0.5)  # type: ignore[union-attr,arg-type]


EXACT = [  # closed forms on their own: nothing is cropped, padded or projected
    "dense", "lora", "lora, Kaiming", "lora, alpha", "lora, rslora", "lora with a core", "2D, not folded",
    "lorta 3D", "CP 3D", "lokr", "lonkr", "krona by layer", "lotr", "stack, Tucker", "stack, CP",
]  # fmt: skip
FOUND = [  # by gradient behind them
    "2D regular", "2D diagonal", "lorta 3D", "lorta 5D", "CP 3D", "lokr", "lokr, low-rank left", "lonkr", "krona",
    "shuffle 1 of lorta 4D", "linear 0.5 of 2D", "linear 0.07 of lorta 4D", "linear_v2 0.1 of plain-scaled 2D",
    "nonlinear 0.3 of dense, 2 groups",
]  # fmt: skip
NEARER = ["loha", "3 Hadamard units", "lokr, 3 terms", "nonlinear_v2 1 of lorta 4D"]


@pytest.mark.parametrize("name", [f"{name}, equal weights" for name in EXACT])
def test_closed_forms_recover_what_the_variant_made(name: str) -> None:
    knobs, targets = VARIANTS[name]
    shapes = plan(config_of(knobs), targets)
    found = fit(shapes, made_by(shapes), steps=0)
    assert found.error < 1e-6
    assert found.steps == 0


@pytest.mark.parametrize("name", FOUND)
def test_a_fit_recovers_what_the_variant_made(name: str) -> None:
    knobs, targets = VARIANTS[name]
    shapes = plan(config_of(knobs), targets)
    wanted = made_by(shapes)
    found = fit(shapes, wanted)
    assert found.error < 1e-5
    assert {n: tuple(tensor.shape) for n, tensor in found.tensors.items()} == shapes.tensors
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float32}
    assert relative(deltas(shapes, found.tensors, Frozen(shapes)), wanted) < 2e-5


@pytest.mark.parametrize("name", NEARER)
def test_where_there_is_no_closed_form_the_gradient_leads_nearer(name: str) -> None:
    knobs, targets = VARIANTS[name]
    shapes = plan(config_of(knobs), targets)
    found = fit(shapes, made_by(shapes))
    assert found.error < 0.3 * found.start_error


@pytest.mark.parametrize("knobs", [{"method": "lora"}, {"rank": 4}, {"method": "lorta", "rank": 3}, {"method": "lokr"}])
def test_the_error_that_is_told_is_the_one_there_is(knobs: dict[str, object]) -> None:
    shapes = plan(config_of({"split_dim": 2, "rank": 2, **knobs}), MIXED)
    wanted = [random(target.rows, target.columns, seed=i) for i, target in enumerate(MIXED)]
    found = fit(shapes, wanted, steps=30)
    made = deltas(shapes, found.tensors, Frozen(shapes))
    assert found.error == pytest.approx(relative(made, wanted), rel=1e-4)
    for told, one, two in zip(found.errors, made, wanted, strict=True):
        assert told == pytest.approx(relative([one], [two]), rel=1e-4)
    assert found.error <= found.start_error * (1 + 1e-6)


def test_lora_is_the_nearest_there_is() -> None:
    shapes = plan(AdapterConfig.from_knobs("lora", rank=2), EQUAL)
    wanted = [random(target.rows, target.columns, seed=i) for i, target in enumerate(EQUAL)]
    for told, delta in zip(fit(shapes, wanted, steps=0).errors, wanted, strict=True):
        values = torch.linalg.svdvals(delta)
        assert told == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-4)


@pytest.mark.parametrize(("lefts", "rights"), [((2, 3), (4, 5)), ((2, 2, 3), (3, 1, 2))])
def test_the_nearest_kronecker_product_misses_the_singular_values_of_the_rearrangement(
    lefts: tuple[int, ...], rights: tuple[int, ...]
) -> None:
    units = [UnitShape(sides, (0,) * len(sides), "dense") for sides in (lefts, rights)]
    wanted = random(*(f * d for f, d in zip(lefts, rights, strict=True)))
    ((left, right),) = fit_kronecker(units, wanted, 1)
    values = torch.linalg.svdvals(rearrange(wanted, lefts, rights))
    assert float((wanted - torch.kron(left["core"], right["core"])).norm()) == pytest.approx(float(values[1:].norm()))


def test_a_weight_that_does_not_change_stays_and_others_are_fitted() -> None:
    shapes = plan(AdapterConfig.from_knobs("lora", rank=2), EQUAL)
    wanted = made_by(shapes)
    wanted[1] = torch.zeros_like(wanted[1])
    found = fit(shapes, wanted)
    assert found.error < 1e-6
    assert found.errors[1] < 1e-6


def test_a_fit_is_repeatable() -> None:
    shapes = plan(AdapterConfig.from_knobs("lorta", order=3, rank=2), MIXED)
    wanted = [random(target.rows, target.columns, seed=i) for i, target in enumerate(MIXED)]
    one, two = (fit(shapes, wanted, steps=20) for _ in range(2))
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_what_is_not_finite_is_refused() -> None:
    shapes = plan(AdapterConfig.from_knobs("lora", rank=2), EQUAL)
    wanted = made_by(shapes)
    wanted[2][0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        fit(shapes, wanted)


def test_without_tensorly_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorly.decomposition", None)
    unit = UnitShape((4, 4, 4), (2, 2, 2), "dense")
    with pytest.raises(UsageError, match=r"tensorly.*superlora-cli\[extract\]"):
        fit_unit(unit, torch.randn(4, 4, 4))
