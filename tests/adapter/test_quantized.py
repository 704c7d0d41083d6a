"""Numbers of a few bits: their levels, their start, their bytes."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from superlora_cli.adapter import store
from superlora_cli.adapter.attach import attach
from superlora_cli.adapter.config import BITS, AdapterConfig
from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.initial import initial
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.quantized import (
    as_stored,
    as_trained,
    pack,
    quantised_after,
    quantized,
    scales,
    unpack,
)
from superlora_cli.adapter.targets import Target, TargetShape
from superlora_cli.errors import UsageError
from tests.adapter.variants import config_of

WEIGHTS = [TargetShape(f"w{i}", 16, 16) for i in range(4)]


def values(count: int, seed: int = 0) -> Tensor:
    return torch.randn(1, count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
def test_what_is_stored_comes_back_as_what_was_computed_with(bits: int) -> None:
    shapes = plan(config_of({"rank": 2, "bits": bits, "inner": {"dim": 37}}), WEIGHTS)
    theta = {"theta": 1.5 * values(37)}
    used = quantized(shapes, theta)
    stored = as_stored(shapes, theta)
    assert torch.equal(as_trained(shapes, stored)["theta"], used["theta"])
    assert torch.equal(quantized(shapes, as_trained(shapes, stored))["theta"], used["theta"])
    assert len(used["theta"].unique()) <= 2**bits
    if bits <= 8:
        assert not (used["theta"] == 0).any()
        packed = pack(stored["theta"], bits)
        assert len(packed) == -(-37 * bits // 8) == shapes.bytes
        assert torch.equal(unpack(packed, bits, (1, 37)), stored["theta"])


def test_the_gradient_passes_as_if_nothing_were_rounded() -> None:
    shapes = plan(config_of({"rank": 2, "bits": 2, "inner": {"dim": 9}}), WEIGHTS)
    theta = (9 * values(9)).requires_grad_()
    weight = values(9, seed=1)
    (quantized(shapes, {"theta": theta})["theta"] * weight).sum().backward()
    assert torch.equal(theta.grad, weight)


def test_levels_of_unequal_scales_lie_as_far_apart_as_the_start_of_each_tensor_says() -> None:
    shapes = plan(config_of({"method": "lorta", "rank": 4, "bits": 4}), WEIGHTS)
    assert scales(shapes) == pytest.approx({"b0_k1_core": 0.3352 / 4, **{f"b0_k1_A{m}": 0.3352 for m in (1, 2, 3)}})


@pytest.mark.parametrize("knobs", [{"method": "lora", "rank": 2}, {"rank": 3, "inner": {"dim": 40}}])
@pytest.mark.parametrize(("bits", "error"), [(8, 0.05), (16, 0.01)])
def test_a_finished_adapter_keeps_its_update_in_many_bits(knobs: dict[str, object], bits: int, error: float) -> None:
    before, draw = plan(config_of(knobs), WEIGHTS), torch.Generator().manual_seed(0)
    trained = {name: value + 0.3 * torch.randn(value.shape, generator=draw) for name, value in initial(before).items()}
    after = plan(quantised_after(before, trained, bits), WEIGHTS)
    wanted = torch.cat(deltas(before, trained, Frozen(before)))
    made = torch.cat(deltas(after, as_trained(after, as_stored(after, trained)), Frozen(after)))
    assert 0 < (made - wanted).norm() / wanted.norm() < error
    assert after.bytes == sum(-(-value.numel() * bits // 8) + 4 * (bits < 16) for value in trained.values())
    assert AdapterConfig.from_json(after.config.to_json()) == after.config


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"bits": 0}, "bits is 0"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": 32}, "bits is 32"),
        ({"bits": 4.0}, "bits is 4.0"),
        ({"scales": (0.1,), "bits": 4}, "unknown knob 'scales'"),
    ],
)
def test_other_bits_are_refused(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdapterConfig.from_knobs(**knobs)


def test_numbers_that_are_not_the_bytes_they_should_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[5\] bytes for 9 numbers of 3 bits"):
        unpack(torch.zeros(5, dtype=torch.uint8), 3, (9,))


def stored(recipe: dict[str, object], **knobs: object) -> store.StoredAdapter:
    target = Target("0", 0, 8, (8, 8), True)
    model = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(64.0).reshape(8, 8))
    adapter = attach(model, [target], config_of(knobs))
    base = ("small", *store.digest_base(model, [target]))
    return store.StoredAdapter.of(
        adapter.config, [target], dict(adapter.factors.items()), patterns=["0"], base=base, recipe=recipe,
        metrics={"accuracy": 0.5}, classes=("cat", "dog"), origin={"made": "here"},
    )  # fmt: skip


RECIPE = {
    "model": {"name": "small", "pretrained": True, "head": "frozen", "kwargs": {"-": 1, "nothing": None}},
    "adapter": {"targets": ["0"], "method": "lorta", "rank": 2, "bits": 3},
    "train": {"steps": 3, "optimizer": {"lr": 0.1, "name": "SGD", "foreach": None}, "checkpoint_at": [3]},
    "seed": 7,
}


@pytest.mark.parametrize("recipe", [{}, RECIPE])
@pytest.mark.parametrize(
    "knobs", [{"method": "lorta", "rank": 2, "bits": 3, "seed": 7}, {"method": "dense", "bits": 16}]
)
def test_the_header_leaves_out_what_the_rest_gives_and_gives_it_back(
    recipe: dict[str, object], knobs: dict[str, object], tmp_path: Path
) -> None:
    made = stored(recipe, **knobs)
    made.save(tmp_path / "one.safetensors", force=True)
    found = store.load(tmp_path / "one.safetensors")
    for name in ("config", "patterns", "targets_digest", "base", "recipe", "metrics", "classes", "origin"):
        assert getattr(found, name) == getattr(made, name), name
    assert found.to_bytes() == made.to_bytes()


GOLDEN = (
    "GAUAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJzdXBlcmxvcmEuYmFzZSI6IntcInNoYTI1NlwiOlwiTWV4RmpJcG1NeGY1ZUl3dnJ0"
    "YlVlOHZpY3VBTU1pZXFRTm1tM3hPYVdVZ1wifSIsInN1cGVybG9yYS5jaGVja3N1bSI6Im41em9CbVFQSGtGclltb29rRnEwSTFy"
    "NlVXQ29ZR1oyVVBybXhqb2NSOWsiLCJzdXBlcmxvcmEuY2xhc3NlcyI6IltcImNhdFwiLCBcImRvZ1wiXSIsInN1cGVybG9yYS5m"
    "b3JtYXRfdmVyc2lvbiI6IjMiLCJzdXBlcmxvcmEubWV0cmljcyI6IntcImFjY3VyYWN5XCI6MC41fSIsInN1cGVybG9yYS5vcmln"
    "aW4iOiJ7XCJtYWRlXCI6XCJoZXJlXCJ9Iiwic3VwZXJsb3JhLnJlY2lwZSI6IntcIi1cIjpbXCJkYXRhXCIsXCJkZWZhdWx0c1wi"
    "LFwiZXZhbFwiLFwib3V0cHV0XCIsXCJ0YXNrXCJdLFwiYWRhcHRlclwiOntcImJpdHNcIjozLFwibWV0aG9kXCI6XCJsb3J0YVwi"
    "LFwicmFua1wiOjIsXCJ0YXJnZXRzXCI6W1wiMFwiXX0sXCJtb2RlbFwiOntcImhlYWRcIjpcImZyb3plblwiLFwia3dhcmdzXCI6"
    "e1wiLVwiOjEsXCJub3RoaW5nXCI6bnVsbH0sXCJuYW1lXCI6XCJzbWFsbFwifSxcInNlZWRcIjo3LFwidHJhaW5cIjp7XCItXCI6"
    "W1wiYWNjdW11bGF0ZVwiLFwiYmF0Y2hfc2l6ZVwiLFwiZGV2aWNlXCIsXCJncmFkaWVudF9jaGVja3BvaW50aW5nXCIsXCJrZWVw"
    "XCIsXCJsYWJlbF9zbW9vdGhpbmdcIixcImxvZ19ldmVyeVwiLFwicHJlY2lzaW9uXCIsXCJzY2hlZHVsZXJcIl0sXCJjaGVja3Bv"
    "aW50X2F0XCI6WzNdLFwib3B0aW1pemVyXCI6e1wiLVwiOltcIndlaWdodF9kZWNheVwiXSxcImZvcmVhY2hcIjpudWxsLFwibHJc"
    "IjowLjEsXCJuYW1lXCI6XCJTR0RcIn0sXCJzdGVwc1wiOjN9fSIsInN1cGVybG9yYS5zaGFwZXMiOiJ7XCJiMF9rMV9BMVwiOlsx"
    "LDEsNCwyXSxcImIwX2sxX0EyXCI6WzEsMSw0LDJdLFwiYjBfazFfQTNcIjpbMSwxLDQsMl0sXCJiMF9rMV9jb3JlXCI6WzEsMSwy"
    "LDIsMl19Iiwic3VwZXJsb3JhLnRhcmdldHMiOiJ7XCJzaGEyNTZcIjpcIkNDTitleEdXaDcvNERVQVphUWZIUnI2Y3AybmtBcjlK"
    "bzc1M3ZRVlJNOUVcIn0ifSwiYjBfazFfQTEiOnsiZGF0YV9vZmZzZXRzIjpbMCwzXSwiZHR5cGUiOiJVOCIsInNoYXBlIjpbM119"
    "LCJiMF9rMV9BMiI6eyJkYXRhX29mZnNldHMiOlszLDZdLCJkdHlwZSI6IlU4Iiwic2hhcGUiOlszXX0sImIwX2sxX0EzIjp7ImRh"
    "dGFfb2Zmc2V0cyI6WzYsOV0sImR0eXBlIjoiVTgiLCJzaGFwZSI6WzNdfSwiYjBfazFfY29yZSI6eyJkYXRhX29mZnNldHMiOls5"
    "LDEyXSwiZHR5cGUiOiJVOCIsInNoYXBlIjpbM119fSAgICAgICtHuVlnEhgzUTMt9w=="
)


def test_a_file_of_format_3_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The table of what it leaves out, the presets and the levels may not change under it."""
    file = tmp_path / "golden.safetensors"
    file.write_bytes(b64decode(GOLDEN))
    found, made = store.load(file), stored(RECIPE, method="lorta", rank=2, bits=3, seed=7)
    assert (found.recipe, found.config) == (made.recipe, made.config)
    assert found.to_bytes() == made.to_bytes() == file.read_bytes()
