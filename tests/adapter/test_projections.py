"""F is exactly x H' diag(G) Π H diag(B), its adjoint is its transpose, and its numbers never move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superlora_cli.adapter import naive, projections
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.from_base import from_base
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.prng import random_state
from superlora_cli.adapter.projections import PROJECTIONS, Size, build, is_nonlinear
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.errors import UsageError
from superlora_cli.table import Table

CPU = torch.device("cpu")


DRAWN = tuple(name for name in PROJECTIONS if not PROJECTIONS[name].CHOOSES)


def made(name: str, size: Size, seed: int = 0, dtype: torch.dtype = torch.float64) -> projections.Project:
    return build(name, size, seed, device=CPU, dtype=dtype)


def test_every_projection_of_the_paper_is_there() -> None:
    assert set(PROJECTIONS) >= {"identity", "shuffle", "linear", "linear_v2", "nonlinear", "nonlinear_v2"}
    assert [name for name in PROJECTIONS if is_nonlinear(name)] == ["nonlinear", "nonlinear_v2"]


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(DRAWN),
    n_out=st.integers(1, 70),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 2**31),
    rescale=st.booleans(),
)
def test_each_projection_is_its_explicit_matrices(
    name: str, n_out: int, share: float, seed: int, rescale: bool
) -> None:
    n_in = n_out if PROJECTIONS[name].FULL_SIZE else max(1, round(share * n_out))
    size = Size(n_in, n_out, rescale)
    x = torch.randn(3, n_in, dtype=torch.float64)
    oracle = [naive.project(AdapterConfig(projection=name, seed=seed), size, row) for row in x]
    torch.testing.assert_close(made(name, size, seed)(x), torch.stack(oracle))


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("n_in", [1, 5, 16, 20])
def test_gradients_pass_gradcheck(name: str, n_in: int) -> None:
    size = Size(20 if PROJECTIONS[name].FULL_SIZE else n_in, 20)
    project = made(name, size)
    x = torch.randn(2, size.n_in, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(project, (x,))
    assert torch.autograd.gradgradcheck(project, (x,))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_low_precision_is_near_float64(dtype: torch.dtype, tolerance: float) -> None:
    size = Size(300, 3000)
    x = torch.randn(2, size.n_in, dtype=torch.float64)
    exact = made("linear", size)(x)
    found = made("linear", size, dtype=dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert (found.double() - exact).norm() / exact.norm() < tolerance


def test_rescale_keeps_the_scale_of_the_input() -> None:
    size = Size(1000, 2**17)
    x = torch.randn(1, 1000, dtype=torch.float64)
    assert made("linear", size)(x).std() / x.std() == pytest.approx(1, abs=0.1)
    plain = made("linear", Size(1000, 2**17, rescale=False))(x)
    assert plain.std() / x.std() == pytest.approx((1000 / 2**17) ** 0.5, rel=0.1)


def test_golden_outputs_do_not_move() -> None:
    x = torch.arange(1, 5, dtype=torch.float64).view(1, 4)
    golden = {
        "shuffle": GOLDEN_SHUFFLE,
        "linear": GOLDEN_LINEAR,
        "linear_v2": GOLDEN_LINEAR_V2,
        "nonlinear": GOLDEN_NONLINEAR,
    }
    for name, values in golden.items():
        np.testing.assert_allclose(made(name, Size(4, 4))(x)[0].numpy(), values, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(made("linear", Size(4, 6))(x)[0].numpy(), GOLDEN_LINEAR_4_TO_6, atol=1e-9)


def test_golden_draws_do_not_move() -> None:
    draw = random_state(0, "projection", "permutation", 4, 4)
    assert draw.permutation(8).tolist() == GOLDEN_PERMUTATION
    normal = random_state(0, "init", "b0_k1_A1").standard_normal(3)
    np.testing.assert_allclose(normal, GOLDEN_NORMAL, atol=1e-9)


GOLDEN_SHUFFLE = [2.0, 3.0, 4.0, 1.0]
GOLDEN_LINEAR = [4.5429293747, 4.1508547255, 3.9162400432, -4.3083146924]
GOLDEN_LINEAR_V2 = [-2.5608271575, 3.2064948414, 3.4625035867, -5.1276714906]
GOLDEN_NONLINEAR = [3.5431558613, 3.1513507871, 2.9170330098, -3.3086767659]
GOLDEN_LINEAR_4_TO_6 = [4.3931105498, 4.4240942657, 4.7283968827, 4.6461525334, 0.9480402264, 0.8657958772]
GOLDEN_PERMUTATION = [1, 6, 3, 5, 2, 4, 7, 0]
GOLDEN_NORMAL = [-0.8244568674, 0.7908929248, 0.2469107291]


@pytest.mark.parametrize("groups", ["weight", 1])
def test_largest_places_numbers_at_the_largest_weights_of_a_group(groups: str | int) -> None:
    targets = [TargetShape("small", 2, 4), TargetShape("large", 2, 4)]
    weights = [torch.tensor([[1.0, -9, 3, 4], [0, 8, 1, 2]]), 10 * torch.tensor([[5.0, 6, 5, 0], [0, -7, 0, 0]])]
    config = AdapterConfig(order=1, groups=groups, projection="largest", ratio=0.25)
    shapes = plan(config, targets)
    trained = {name: torch.ones(shape) for name, shape in shapes.tensors.items()}
    made = deltas(shapes, trained, Frozen(shapes, base=from_base(shapes, weights)))
    found = [delta.flatten().nonzero().flatten().tolist() for delta in made]
    assert found == ([[1, 5], [1, 5]] if groups == "weight" else [[], [0, 1, 2, 5]])


def test_groups_share_one_projection() -> None:
    size = Size(6, 12)
    x = torch.randn(1, 6, dtype=torch.float64)
    both = made("linear", size)(x.repeat(3, 1))
    assert torch.equal(both[0], both[1])
    assert torch.equal(both[1], both[2])


def test_sizes_and_seeds_have_draws_of_their_own() -> None:
    x = torch.randn(1, 8, dtype=torch.float64)
    outputs = [made("linear", Size(8, 16), seed)(x) for seed in (0, 1)] + [made("linear", Size(8, 17))(x)[:, :16]]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"projection": "linear", "ratio": 0.0}, "ratio is 0.0"),
        ({"projection": "linear", "ratio": 1.5}, "ratio is 1.5"),
        ({"ratio": 0.5}, "ratio 0.5 with projection identity"),
        ({"projection": "shuffle", "ratio": 0.5}, "ratio 0.5 with projection shuffle"),
        ({"projection": "liner"}, "did you mean 'linear'"),
        ({"terms": 2}, "terms 2 with splits 1"),
        ({"terms": 0, "splits": 2}, "terms is 0"),
        ({"splits": 2, "split_dim": 99}, "side 99 does not fit a side of 8"),
        ({"splits": 2, "split_dim": 2, "rank": 5}, "rank 5 is larger than a side of 4"),
        ({"order": 1, "splits": 2}, "splits 2 with order 1"),
        ({"order": 1, "splits": 2, "combine": "hadamard"}, "splits 2 with order 1"),
        ({"left": "lowrank"}, "left lowrank with splits 1"),
        ({"left": "lowrank", "splits": 2, "rank": ["full", "full"]}, "left lowrank with rank"),
        ({"rank": 0}, "rank is 0"),
        ({"groups": 40, "order": 1, "projection": "linear"}, "64 elements"),
        ({"order": 3, "fold": "stack", "projection": "linear", "rank": 1}, "fold stack with projection linear"),
    ],
)
def test_misuse_names_the_numbers(knobs: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(AdapterConfig.from_knobs(None, **knobs), [TargetShape("w", 8, 8)])
    assert words in str(error.value)


def test_ratio_is_read_as_a_decimal() -> None:
    shapes = plan(AdapterConfig(order=1, projection="linear", ratio=0.07), [TargetShape("w", 10, 10)])
    assert shapes.buckets[0].shape.n_in == 7


def test_a_new_projection_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mirror.py").write_text("def build(size, draw, place):\n    return lambda x: x.flip(-1)\n")
    monkeypatch.setattr(projections, "__path__", [*projections.__path__, str(tmp_path)])
    monkeypatch.setattr(projections, "PROJECTIONS", Table("projection", projections.files()))
    x = torch.arange(4.0).view(1, 4)
    assert made("mirror", Size(4, 4))(x).tolist() == [[3, 2, 1, 0]]
