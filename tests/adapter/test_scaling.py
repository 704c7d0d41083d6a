"""`scaling: weights`: ΔW in the size of the weights, for every variant alike."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import superlora_cli
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.scaling import settled
from superlora_cli.adapter.targets import Target

WIDTH, LAYERS = 96, 6
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense"},
    "lora": {"method": "lora", "rank": 4},
    "lora of rank 1": {"method": "lora", "rank": 1},
    "lokr": {"method": "lokr", "rank": 2},
    "krona": {"method": "krona"},
    "lonkr": {"method": "lonkr", "rank": 3},
    "loha": {"method": "loha", "rank": 3},
    "2D": {"rank": 6},
    "2D, projected": {"rank": 4, "projection": "linear_v2", "ratio": 0.1},
    "lorta 3D": {"method": "lorta", "rank": 4},
    "lorta 5D": {"method": "lorta", "order": 5, "rank": 3},
    "CP 4D": {"order": 4, "rank": 5, "core": "identity"},
    "rows": {"method": "ia3"},
    "elementwise": {"method": "hira", "rank": 3},
}


def model(scale: float = 0.05) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    for layer in made:
        nn.init.normal_(layer.weight, std=scale)
    return made


def size(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(t.square().sum().item() for t in tensors) / sum(t.numel() for t in tensors))


@pytest.mark.parametrize("knobs", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("scale", [0.02, 0.5])
def test_with_every_factor_at_unit_scale_an_update_is_twice_as_large_as_the_weights_and_more_under_an_f(
    knobs: dict[str, Any], scale: float
) -> None:
    base = model(scale)
    before = size([layer.weight for layer in base])
    adapter = superlora_cli.attach(base, [str(i) for i in range(LAYERS)], **knobs)
    with torch.no_grad():
        for factor in adapter.factors.values():
            if not factor.any():  # the one that makes ΔW zero at the start
                factor.normal_()
    times = 2 / knobs.get("ratio", 1) ** 0.25
    assert size(adapter.compute()) == pytest.approx(times * before, rel=0.35)


def test_the_scale_is_settled_as_a_plain_alpha_and_saved_so(tmp_path: Any) -> None:
    from superlora_cli.adapter.store import load

    base = model()
    adapter = superlora_cli.attach(base, ["0", "1"], rank=4)
    superlora_cli.save(base, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").config == adapter.config
    assert (adapter.config.scaling, adapter.config.alpha) == ("alpha", pytest.approx(0.05, rel=0.05))


@pytest.mark.parametrize("knobs", [{"alpha": 4.0}, {"scaling": "rslora"}, {"init": "lora"}, {"method": "lora_xs"}])
def test_another_scale_is_left_as_it_is(knobs: dict[str, Any]) -> None:
    adapter = superlora_cli.attach(model(), ["0", "1"], **{"rank": 4, **knobs})
    assert adapter.config.scaling == knobs.get("scaling", "alpha_over_rank")


@pytest.mark.parametrize(("bits", "times"), [(3, 0.5), (16, 2)])
def test_numbers_of_a_few_bits_make_smaller_updates(bits: int, times: float) -> None:
    config, target = AdapterConfig(rank=4, scaling="weights", bits=bits), Target("a", 0, 16, (16, 16), True)
    assert settled(config, [target], [torch.full((16, 16), 0.02)]).alpha == pytest.approx(times * 0.02 / 2)


def test_alpha_says_how_many_times_the_weights() -> None:
    one, three = (superlora_cli.attach(model(), ["0"], rank=4, scaling="weights", alpha=a).config for a in (1.0, 3.0))
    assert three.alpha == pytest.approx(3 * (one.alpha or 0), rel=0.01)


def test_weights_without_values_settle_nothing_and_zero_ones_count_by_their_fan_in() -> None:
    config, target = AdapterConfig(rank=4, scaling="weights"), Target("a", 0, 16, (16, 16), True)
    assert settled(config, [target], [torch.empty(16, 16, device="meta")]) == config
    assert settled(config, [target], [torch.zeros(16, 16)]).alpha == 2 / 4 / 2
