"""What is counted is what is there: published counts, every knob at random, and the shapes where integers go wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from superlora_cli.adapter.attach import SuperLora
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.counting import count
from superlora_cli.adapter.layout import plan, root_ceil
from superlora_cli.adapter.targets import Target, TargetShape
from superlora_cli.errors import UsageError
from superlora_cli.models.catalogue import targets as catalogue_targets

VIT = catalogue_targets("vit_base_patch16_224", ["q", "v"])  # 24 weights of 768×768
UNET = catalogue_targets("cfg_unet", ["q", "v"])  # 10 weights of 64×64, 32 of 128×128

Case = tuple[AdapterConfig, list[TargetShape]]


def shapes(*sides: tuple[int, int]) -> list[TargetShape]:
    return [TargetShape(f"blocks.{i // 2}.w{i}", *side, f"blocks.{i // 2}") for i, side in enumerate(sides)]


def knobs(method: str | None = None, **values: Any) -> AdapterConfig:
    return AdapterConfig.from_knobs(method, **values)


@pytest.mark.parametrize(
    ("targets", "config", "params", "side"),
    [
        (VIT, knobs("lora", rank=4), 147_456, 768),
        (VIT, knobs(fold="none", rank=6), 115_200, 18_432),
        (VIT, knobs(rank=22), 165_572, 3_763),
        (VIT, knobs(groups=4, order=5, rank=4), 5_776, 21),
        (VIT, knobs("lorta", groups=4, rank=4), 7_600, 153),
        (VIT, knobs("lorta", rank=4), 2_968, 242),
        (UNET, knobs("lora", rank=8), 75_776, 64),
        (UNET, knobs(groups=4, rank=24, align=64), 73_728, 384),
        (UNET, knobs(rank=7, align=64), 10_752, 768),
        (UNET, knobs("lorta", groups=12, rank=5), 8_160, 37),
        (UNET, knobs("lorta", rank=4), 1_060, 83),
        (UNET, knobs("lorta", order=5, rank=1), 76, 15),
        (UNET, knobs("lorta", order=5, rank=1, projection="linear_v2", ratio=0.01), 31, 6),
        (UNET, knobs(groups=4, rank=4, projection="linear_v2", ratio=0.5), 8_512, 266),
        (UNET, knobs("lonkr", splits=2, rank=10, terms=2), 5_112, 6),
        (UNET, knobs("lonkr", splits=2, rank=2, terms=2), 1_080, 6),
        (UNET, knobs("lonkr", splits=2, rank=10), 5_112 // 2, 6),
    ],
)
def test_published_counts_come_out_exactly(
    targets: list[TargetShape], config: AdapterConfig, params: int, side: int
) -> None:
    counted = count(config, targets)
    assert counted.adapter == params
    assert counted.units[0]["shape"][0] == side


def test_the_elements_of_the_paper_s_bases() -> None:
    assert sum(target.elements for target in VIT) == 14_155_776
    assert sum(target.elements for target in UNET) == 565_248


# Every knob at random.


@st.composite
def settings_of_an_adapter(draw: st.DrawFn) -> Case:
    """A configuration over all knobs, and small targets that it fits."""
    side = st.integers(1, 12)
    if draw(st.booleans()):
        targets = shapes(*[draw(st.tuples(side, side))] * draw(st.integers(1, 6)))
    else:
        targets = shapes(*draw(st.lists(st.tuples(side, side), min_size=1, max_size=6)))
    values: dict[str, Any] = {"order": draw(st.integers(1, 5)), "align": draw(st.sampled_from((1, 1, 2, 5)))}
    order = values["order"]
    folds = ["regular"] * 3 + ["none"] * (order <= 2) + ["stack"] * (order == 3)
    values["fold"] = draw(st.sampled_from(folds))
    values["groups"] = draw(st.sampled_from(("weight", "layer", 1, 2, 3, 7)))
    if order > 1:
        rank = st.one_of(st.integers(1, 3), st.just("full"))
        values["rank"] = draw(st.one_of(st.integers(1, 4), st.lists(rank, min_size=order, max_size=order)))
        values["core"] = draw(st.sampled_from((None, "dense", "identity", "diagonal")))
    values["splits"] = draw(st.sampled_from((1, 1, 2, 3)))
    if values["splits"] > 1:
        values["combine"] = draw(st.sampled_from(("kronecker", "hadamard")))
        values["split_dim"] = draw(st.integers(1, 3))
        values["left"] = draw(st.sampled_from(("dense", "lowrank")))
        values["terms"] = draw(st.integers(1, 3))
    if values["fold"] != "stack":
        values["projection"] = draw(st.sampled_from(("identity", "shuffle", "linear", "nonlinear_v2")))
        if values["projection"] not in ("identity", "shuffle"):
            values["ratio"] = draw(st.sampled_from((1.0, 0.5, 0.07)))
    try:
        config = AdapterConfig.from_knobs(None, **values)
        plan(config, targets)
    except UsageError:
        reject()
    return config, targets


@settings(max_examples=300, deadline=None)
@given(settings_of_an_adapter())
def test_the_count_is_the_sum_over_all_tensors(case: Case) -> None:
    counted = count(*case)
    assert counted.adapter == sum(math.prod(shape) for shape in counted.plan.tensors.values())
    assert counted.adapter == sum(unit["count"] * unit["params"] for unit in counted.units)
    assert 0 <= counted.core <= counted.adapter


@settings(max_examples=200, deadline=None)
@given(settings_of_an_adapter())
def test_the_count_is_that_of_the_built_module(case: Case) -> None:
    config, targets = case
    module = SuperLora(config, [Target(t.name, 0, t.rows, (t.rows, t.columns), True) for t in targets])
    assert sum(parameter.numel() for parameter in module.parameters()) == count(config, targets).adapter


@settings(max_examples=200, deadline=None)
@given(settings_of_an_adapter())
def test_groups_cover_the_vector_and_units_cover_their_group(
    case: Case,
) -> None:
    config, targets = case
    shape = plan(config, targets)
    reached = max(shape.starts[member] + bucket.shape.n_out for bucket in shape.buckets for member in bucket.members)
    assert reached >= shape.elements
    for bucket in shape.buckets:
        assert math.prod(bucket.shape.sides) >= bucket.shape.n_in >= 1
        if config.splits > 1 and config.combine == "kronecker":
            sides = [math.prod(axis) for axis in zip(*(unit.sides for unit in bucket.shape.units), strict=True)]
            assert all(product >= side for product, side in zip(sides, bucket.shape.sides, strict=True))


# Shapes where an integer is easily one off.


@pytest.mark.parametrize(
    ("config", "targets", "sides", "params"),
    [
        (knobs(order=3, rank=1), shapes((27, 27)), (9, 9, 9), 28),  # 729 = 9³: no tenth
        (knobs(order=3, rank=1), shapes((2, 365)), (10, 10, 10), 31),  # 730 is one more
        (knobs(order=5, rank=1), shapes((3125, 1)), (5,) * 5, 26),  # 5⁵, where 3125^(1/5) is 5.000000000000001
        (knobs(order=2, rank=1), shapes((10**8, 10**8)), (10**8, 10**8), 2 * 10**8),
        (knobs(order=2, rank=1), shapes((1, 1)), (1, 1), 2),  # the smallest target there is
        (knobs(order=5, rank=1), shapes((1, 1)), (1,) * 5, 6),
        (knobs(order=3, rank=9), shapes((27, 27)), (9, 9, 9), 9**3 + 3 * 81),  # rank = side
        (knobs(order=3, rank=("full", 2, 3)), shapes((27, 27)), (9, 9, 9), 9 * 2 * 3 + 18 + 27),
        (knobs(order=2, rank=("full", "full")), shapes((3, 4)), (4, 4), 16),  # all full: the unit is dense
        (knobs("dense"), shapes((3, 5)), (15,), 15),
        (knobs(order=1, projection="linear", ratio=0.07), shapes((10, 10)), (7,), 7),  # 0.07 · 100 is 7, not 8
        (knobs(groups=3, rank=1), shapes((2, 5)), (2, 2), 3 * 4),  # 4 + 4 + 2 of 10 elements
        (knobs("lora", rank=1), shapes((7, 3)), (7, 3), 10),
        (knobs(fold="none", rank=1), shapes((2, 3), (4, 5)), (6, 5), 11),  # ⌈26 / 5⌉ rows of the widest
        (knobs(rank=1, align=64), shapes((8, 8)), (64, 64), 128),  # 8, rounded up
        (knobs("lotr", rank=2), shapes(*[(6, 4)] * 5), (5, 6, 4), 5 * 4 + 12 + 8),
        (knobs("lotr", rank=2, groups=5), shapes(*[(6, 4)] * 5), (1, 6, 4), 5 * (4 + 12 + 8)),
        (knobs("lokr", rank=1, split_dim=8), shapes((8, 8)), (8, 8), 64 + 2),  # the right side is 1
        (knobs("lokr", rank=1, split_dim=8), shapes((9, 8)), (8, 8), 64 + 2 + 1),
        (knobs("loha", rank=1), shapes((7, 3)), (7, 3), 2 * 10),
    ],
)
def test_hard_shapes(config: AdapterConfig, targets: list[TargetShape], sides: tuple[int, ...], params: int) -> None:
    counted = count(config, targets)
    assert counted.units[0]["shape"] == sides
    assert counted.adapter == params


def test_root_ceil_is_the_smallest_side_that_is_enough() -> None:
    for power in range(1, 7):
        side = 1
        for value in range(1, 3000):
            while side**power < value:
                side += 1
            assert root_ceil(value, power) == side


@given(side=st.integers(1, 10**9), power=st.integers(1, 8), off=st.integers(-1, 1))
def test_root_ceil_is_exact_beside_perfect_powers(side: int, power: int, off: int) -> None:
    value = side**power + off
    root = root_ceil(value, power)
    assert root**power >= value
    assert root == 1 or (root - 1) ** power < value


@pytest.mark.parametrize(
    ("config", "targets", "numbers"),
    [
        (knobs(rank=5), shapes((4, 4)), ("rank 5", "side of 4")),
        (knobs(order=5, rank=4), shapes((9, 9)), ("rank 4", "side of 3")),
        (knobs("lora", rank=4), shapes((8, 3)), ("rank 4", "side of 3")),
        (knobs(groups=7, rank=1), shapes((3, 3)), ("7 groups of 2", "9 elements")),
        (knobs("lokr", split_dim=8, rank=1), shapes((4, 9)), ("side 8", "side of 4")),
        (knobs("lonkr", split_dim=6, rank=4), shapes((20, 20)), ("rank 4", "side of 2")),
        (knobs("lotr", rank=1), shapes((4, 4), (4, 5)), ("4×4", "4×5")),
        (knobs("lotr", groups=2, rank=1), shapes(*[(4, 4)] * 3), ("24 elements", "4×4")),
        (knobs(order=20, rank=1), VIT, ("3,486,784,401 elements", "14,155,776")),
        (knobs(align=2**15), VIT, ("1,073,741,824 elements", "14,155,776")),
        (knobs("lonkr", splits=40, split_dim=2, rank=1), VIT, (f"{2**80:,} elements", "14,155,776")),
        (knobs(projection="linear", ratio=0.1), shapes((2**16, 2**16)), ("4,294,967,296 elements", "2,147,483,648")),
        (knobs(projection="shuffle"), shapes((2**16, 2**16)), ("4,294,967,296 elements", "2,147,483,648")),
        (knobs(projection="dense", ratio=0.1), VIT, ("20,038,605,078,528 elements", "2,147,483,648")),
        (knobs(rank=64, inner={"projection": "dense", "dim": 8000}), VIT, ("elements", "2,147,483,648")),
    ],
)
def test_an_error_names_both_numbers_before_memory_is_taken(
    config: AdapterConfig, targets: list[TargetShape], numbers: tuple[str, str]
) -> None:
    with pytest.raises(UsageError) as caught:
        count(config, targets)
    for number in numbers:
        assert number in caught.value.message
    assert caught.value.hint
