"""Knobs are held to their types where they come in: numpy's numbers are numbers, the rest is said by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.errors import UsageError


@pytest.mark.parametrize(
    ("knobs", "same"),
    [
        ({"rank": np.int64(2), "groups": np.uint8(3), "seed": np.int32(1)}, {"rank": 2, "groups": 3, "seed": 1}),
        ({"rank": [np.int64(2), "full"]}, {"rank": [2, "full"]}),
        ({"alpha": np.float64(4), "rescale": np.bool_(False)}, {"alpha": 4.0, "rescale": False}),
        ({"projection": "linear", "ratio": np.float32(0.07)}, {"projection": "linear", "ratio": 0.07}),
        ({"inner": {"dim": np.int64(3), "per": np.str_("group")}}, {"inner": {"dim": 3, "per": "group"}}),
        ({"diagonals": [np.int64(1)]}, {"diagonals": (1,)}),
    ],
)
def test_numbers_of_numpy_are_numbers(knobs: dict[str, object], same: dict[str, object]) -> None:
    config = AdapterConfig.from_knobs(**knobs)
    assert config == AdapterConfig.from_knobs(**same)
    assert config.to_json() == AdapterConfig.from_knobs(**same).to_json()


def test_a_preset_with_a_form_of_its_own_knows_them_too() -> None:
    assert AdapterConfig.from_knobs("lotr", rank=np.int64(2)).ranks == ("full", 2, 2)


@pytest.mark.parametrize(
    ("knobs", "version"),
    [
        ({}, "1"),
        ({"method": "vera"}, "1"),
        ({"also": ["bias"]}, "2"),
        ({"method": "none"}, "2"),
        ({"bits": 4, "also": ["norm"]}, "3"),
        ({"method": "hira"}, "4"),
        ({"method": "oft", "bits": 4}, "4"),
        ({"method": "vblora"}, "4"),
    ],
)
def test_a_file_has_the_oldest_format_that_knows_its_knobs(knobs: dict[str, Any], version: str) -> None:
    assert AdapterConfig.from_knobs(knobs.pop("method", None), **knobs).format_version == version


def test_a_whole_number_stays_one_in_the_file() -> None:
    assert json.loads(AdapterConfig.from_knobs(alpha=4).to_json())["alpha"].__class__ is int


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("rank", 2.0),
        ("rank", True),
        ("rank", [2, "ful"]),
        ("rank", np.float64(2)),
        ("rank", torch.tensor(2)),
        ("alpha", "4"),
        ("ratio", False),
        ("rescale", "no"),
        ("inner", 3),
        ("inner.dim", 2.5),
        ("inner.per", 3),
        ("terms", "all"),
        ("groups", "blocks"),
        ("seed", 0.5),
        ("core", 1),
        ("projection", ["linear"]),
        ("freeze", "planes"),
        ("diagonals", 1),
    ],
)
def test_a_knob_of_another_type_is_named(knob: str, value: object) -> None:
    outer, _, own = knob.partition(".")
    with pytest.raises(UsageError) as caught:
        AdapterConfig.from_knobs(**{outer: {own: value} if own else value})
    assert caught.value.where == f"adapter.{knob}"
    assert caught.value.hint


def test_a_method_that_is_no_word_is_named() -> None:
    with pytest.raises(UsageError, match=r"adapter\.method: unknown method"):
        AdapterConfig.from_knobs(["lora"])  # type: ignore[arg-type]
