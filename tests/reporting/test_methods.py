"""Any knobs have a name, and those of a method its own."""

from __future__ import annotations

from typing import Any

import pytest

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.recipe.load import load_recipe, shipped_recipes
from superlora_cli.reporting.methods import method_name
from tests.adapter.variants import VARIANTS, config_of


@pytest.mark.parametrize(
    ("method", "knobs", "name"),
    [
        ("none", {}, "head alone"),
        ("bitfit", {}, "BitFit"),
        (None, {"groups": "none", "also": ["bias", "norm"]}, "biases and norms"),
        ("vera", {"also": ["norm"], "projection": "shuffle"}, "VeRA, shuffle, norms"),
        ("dense", {}, "dense"),
        ("lora", {"rank": 7, "alpha": 3.0, "init": "lora"}, "LoRA"),
        (None, {"groups": "weight", "order": 2, "fold": "none", "rank": 2}, "LoRA"),
        ("lokr", {"split_dim": 4, "left": "lowrank"}, "LoKr"),
        ("krona", {}, "KronA"),
        ("loha", {"rank": 1}, "LoHa"),
        ("lotr", {"rank": 3}, "LoTR"),
        ("lonkr", {"groups": 4, "splits": 2, "terms": 2}, "LoNKr"),
        ("lorta", {"order": 5, "groups": 4}, "LoRTA 5D"),
        ("lorta", {"groups": "weight"}, "LoRTA 3D"),
        ("lorta", {"projection": "linear", "ratio": 0.1}, "LoRTA 3D, linear"),
        ("lorta", {"core": "diagonal"}, "CP 3D"),
        (None, {"fold": "none", "groups": 4}, "2D"),
        (None, {"projection": "shuffle"}, "2D reshaped, shuffle"),
        (None, {"order": 1, "groups": 1, "projection": "nonlinear", "ratio": 0.01}, "dense, nonlinear"),
        (None, {"order": 3, "splits": 2}, "3D Kronecker of 2"),
        ("unilora", {"rank": 2, "inner": {"dim": 9}}, "Uni-LoRA"),
        ("vera", {"rank": 3}, "VeRA"),
        ("randlora", {"rank": 3, "terms": 4}, "RandLoRA"),
        ("lora_xs", {}, "LoRA-XS"),
        ("tinylora", {"inner": {"dim": 2}}, "TinyLoRA"),
        ("nola", {}, "NOLA"),
        ("fourierft", {"ratio": 0.1}, "FourierFT"),
        ("fact_tk", {"rank": 2}, "FacT-TK"),
        ("cara", {}, "CaRA"),
        ("lorta", {"rank": 2, "freeze": ["planes"], "frozen": "svd"}, "LoRTA 3D, planes from the base"),
        ("vera", {"diagonals": [1, 2], "terms": 2}, "2D, planes frozen, diagonals, 2 terms"),
    ],
)
def test_the_name_of_knobs(method: str | None, knobs: dict[str, Any], name: str) -> None:
    assert method_name(AdapterConfig.from_knobs(method, **knobs)) == name


def test_every_kind_has_a_name() -> None:
    for recipe in shipped_recipes():
        section = load_recipe(recipe).adapter
        assert method_name(section.config() if section else None)
    for knobs, _ in VARIANTS.values():
        assert method_name(config_of(knobs))
