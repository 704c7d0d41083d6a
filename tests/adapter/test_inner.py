"""F_in keeps the scale of the factors, its numbers never move, and knobs that are not used leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from superlora_cli.adapter import svd
from superlora_cli.adapter.attach import attach
from superlora_cli.adapter.config import PRESETS, AdapterConfig
from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.factored import factored
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.initial import initial, relative
from superlora_cli.adapter.inner_config import MAPS
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.targets import Target, TargetShape
from superlora_cli.errors import UsageError
from tests.adapter.variants import base_of

WEIGHTS = [TargetShape(f"w{i}", 64, 64) for i in range(12)]


def rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()


@pytest.mark.parametrize("projection", MAPS)
@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_factors_start_with_the_entries_of_init_unit_at_every_order(order: int, projection: str) -> None:
    inner = {"projection": projection, "dim": 400}
    with_inner = plan(AdapterConfig.from_knobs(order=order, rank=4, inner=inner), WEIGHTS)
    without = plan(AdapterConfig(order=order, rank=4), WEIGHTS)
    found = Frozen(with_inner).factors(with_inner, initial(with_inner))
    for name, value in initial(without).items():
        if name != "b0_k1_A1":  # which is zero without F_in
            assert rms(found[name]) == pytest.approx(rms(value), rel=0.25)
    assert rms(found["b0_k1_A1"]) == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_a_step_moves_the_update_as_far_as_it_does_without_inner(order: int) -> None:
    """One step of AdamW moves every number by the learning rate."""

    def moved(config: AdapterConfig) -> float:
        shapes = plan(config, WEIGHTS)
        params = {name: value.clone().requires_grad_() for name, value in initial(shapes).items()}
        frozen, generator = Frozen(shapes), torch.Generator().manual_seed(0)
        wanted = [torch.randn(64, 64, generator=generator) for _ in WEIGHTS]
        loss = sum((delta * want).sum() for delta, want in zip(deltas(shapes, params, frozen), wanted, strict=True))
        grads = torch.autograd.grad(loss, list(params.values()))
        stepped = {name: v.detach() + 0.1 * g.sign() for (name, v), g in zip(params.items(), grads, strict=True)}
        return rms(torch.stack(deltas(shapes, stepped, frozen)))

    with_inner = moved(AdapterConfig.from_knobs(order=order, rank=4, inner={"dim": 200}))
    assert 0.5 < with_inner / moved(AdapterConfig(order=order, rank=4)) < 4


def test_numbers_that_are_drawn_do_not_move() -> None:
    shapes = plan(AdapterConfig.from_knobs(rank=1, inner={"dim": 3}), [TargetShape("w", 2, 2)])
    near = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(initial(shapes)["theta"], torch.tensor([[-0.3449, 1.2223, -0.3857]]), **near)
    image = Frozen(shapes).inner.maps[0](torch.tensor([[1.0, 2.0, 3.0]]))
    torch.testing.assert_close(image, torch.tensor([[0.8165, 2.3094, 3.4641, 0.8165]]), **near)
    frozen = plan(AdapterConfig.from_knobs("vera", rank=1), [TargetShape("w", 2, 2)])
    plane = Frozen(frozen).inner.fixed["b0_k1_A1"].flatten()
    torch.testing.assert_close(plane, torch.tensor([-0.1644, -1.4046]), **near)


def test_random_factors_are_shared_by_groups_and_take_the_memory_of_one() -> None:
    shapes = plan(AdapterConfig.from_knobs("vera", rank=3), WEIGHTS)
    plane = Frozen(shapes).inner.fixed["b0_k1_A2"]
    assert plane.shape == (12, 1, 64, 3)
    assert plane.untyped_storage().nbytes() == 4 * 64 * 3
    assert (plane == plane[:1]).all()


@pytest.mark.parametrize(
    ("knobs", "is_relative"),
    [
        ({"method": "unilora"}, True),
        ({"method": "tinylora"}, False),  # θ makes the core alone, which can be zero
        ({"method": "nola"}, False),  # the θ of the first factor can be zero
        ({"method": "vera"}, False),
        ({"method": "lora", "rank": 2, "inner": {"dim": 8, "per": "group"}}, True),
    ],
)
def test_the_update_is_relative_to_its_start_only_where_nothing_can_be_zero(
    knobs: dict[str, object], is_relative: bool
) -> None:
    method = str(knobs.pop("method"))
    assert relative(plan(AdapterConfig.from_knobs(method, **knobs), WEIGHTS)) == is_relative


def test_knobs_that_are_not_used_are_not_written_down() -> None:
    assert AdapterConfig().to_json() == (
        '{"align": 1, "alpha": null, "combine": "kronecker", "core": null, "execution": "auto", "fold": "regular", '
        '"groups": 1, "init": "unit", "left": "dense", "order": 2, "projection": "identity", "rank": null, '
        '"ratio": 1.0, "rescale": true, "scaling": "alpha_over_rank", "seed": 0, "split_dim": 8, "splits": 1, '
        '"terms": 1}'
    )


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_is_read_back_as_it_was_written(method: str) -> None:
    config = AdapterConfig.from_knobs(method)
    assert AdapterConfig.from_json(config.to_json()) == config


def test_keys_under_inner_join_those_of_the_preset() -> None:
    config = AdapterConfig.from_knobs("tinylora", inner={"dim": 2})
    assert config.inner is not None
    assert (config.inner.projection, config.inner.dim, config.inner.per) == ("dense", 2, "group")
    assert AdapterConfig.from_knobs("unilora", inner={"projection": "none"}).inner is None


def test_factors_from_the_base_are_refused_without_it() -> None:
    shapes = plan(AdapterConfig.from_knobs("lora_xs"), WEIGHTS)
    with pytest.raises(UsageError, match="depends on the base's weights, which are not available"):
        Frozen(shapes)


@pytest.mark.parametrize("projection", ["identity", "linear", "nonlinear", "nonlinear_v2", "onehot", "dense", "dft"])
@pytest.mark.parametrize("method", PRESETS)
def test_what_is_not_refused_starts_with_a_gradient(method: str, projection: str) -> None:
    targets = [TargetShape(f"w{i}", 16, 16) for i in range(2)]
    ratio = {} if projection == "identity" else {"ratio": 0.25}
    for more in ({}, {"inner": {"projection": "fastfood", "dim": 3, "per": "group"}}, {"rescale": False, "alpha": 1.0}):
        try:
            shapes = plan(AdapterConfig.from_knobs(method, projection=projection, **ratio, **more), targets)
        except UsageError:
            continue
        params = {name: value.requires_grad_() for name, value in initial(shapes).items()}
        frozen = Frozen(shapes, base=base_of(shapes))
        if shapes.config.activates:
            made = [update(torch.eye(16)) for update in factored(shapes, frozen.factors(shapes, params))]
        else:
            made = deltas(shapes, params, frozen)
        sum((delta * torch.arange(256.0).view(16, 16).cos()).sum() for delta in made).backward()
        assert max(value.grad.abs().max().item() for value in params.values()) > 1e-6


def test_singular_vectors_of_a_tall_matrix_are_found_from_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = svd.singular(matrix, 3, scaled=True)
    monkeypatch.setattr(svd, "TALL", 8)
    torch.testing.assert_close(svd.singular(matrix, 3, scaled=True), wanted)


def test_singular_vectors_of_a_tall_matrix_of_lower_rank_are_orthonormal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svd, "TALL", 8)
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*shape, dtype=torch.float64, generator=draw) for shape in ((20, 2), (2, 5)))
    for matrix in (left @ right, left @ torch.eye(2, 5, dtype=torch.float64)):
        vectors = svd.singular(matrix, 4, scaled=False)
        torch.testing.assert_close(vectors.mT @ vectors, torch.eye(4, dtype=torch.float64))
        torch.testing.assert_close(vectors[:, :2] @ (vectors[:, :2].mT @ matrix), matrix)
        assert svd.singular(matrix, 4, scaled=True).isfinite().all()


def test_a_base_of_zeros_has_no_singular_vectors() -> None:
    shapes = plan(AdapterConfig.from_knobs("lora_xs", rank=2), WEIGHTS[:2])
    with pytest.raises(UsageError, match="group 1 of the base's weights is all zero"):
        svd.planes(shapes, [torch.ones(64, 64), torch.zeros(64, 64)])


def test_a_copy_keeps_the_factors_from_the_base_when_the_weights_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    adapter = attach(model, [Target("0", 0, 8, (8, 8), True)], AdapterConfig.from_knobs("lora_xs", rank=2))
    with torch.no_grad():
        adapter.factors["b0_k1_core"].normal_()
    before = adapter.compute()[0]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0]._parameters["weight"].zero_()
    torch.testing.assert_close(other.superlora.get().compute()[0], before)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"inner": {"dims": 3}}, "unknown knob 'dims'"),
        ({"inner": {"per": "weight"}}, "unknown per 'weight'"),
        ({"freeze": ["core"]}, "unknown factor 'core'"),
        ({"freeze": ["left"]}, "unknown factor 'left'"),
        ({"diagonals": [1, 1]}, "a mode twice"),
        ({"order": 1, "diagonals": [1]}, "mode 1 has no factor"),
        (
            {"freeze": ["planes"], "frozen": "svd", "core": "dense", "projection": "linear"},
            "svd with projection linear",
        ),
        ({"freeze": ["planes"], "frozen": "svd", "splits": 2}, "frozen svd with splits 2"),
        ({"inner": {"dim": 9}, "projection": "nonlinear", "init": "lora"}, "init lora with projection nonlinear"),
        ({"inner": {"dim": 9}, "projection": "nonlinear_v2", "rescale": False}, "rescale false and inner with"),
        ({"projection": "nonlinear_v2", "init": "lora"}, "init lora with projection nonlinear_v2"),
        ({"freeze": ["planes"], "frozen": "svd", "multiply": "rows"}, "frozen svd with multiply rows"),
        ({"projection": "largest", "ratio": 0.5, "multiply": "elementwise"}, "largest with multiply elementwise"),
        ({"multiply": "rotations"}, "unknown multiply 'rotations'"),
        ({"multiply": "rotation", "block": 0}, "block is 0"),
        ({"order": 3, "fold": "kernel"}, "fold kernel with order 3"),
        ({"inner": {"vectors": 3}}, "vectors and topk with projection onehot"),
        ({"inner": {"projection": "bank", "vectors": 3, "topk": 4}}, "topk 4 of 3 vectors"),
        ({"inner": {"projection": "bank", "per": "group"}}, "per group with projection bank"),
    ],
)
def test_knobs_that_do_not_go_together_are_refused(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdapterConfig.from_knobs(**knobs)


def test_more_singular_vectors_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match="2 terms of rank 40 from the 64 singular vectors"):
        plan(AdapterConfig.from_knobs("lora_xs", rank=40, terms=2), WEIGHTS)
