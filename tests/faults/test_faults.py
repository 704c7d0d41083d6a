"""A few faults of every kind are survived; `benchmarks/faults.py` tries many."""

from __future__ import annotations

import random

import pytest

from tests.faults.areas import AREAS
from tests.faults.material import Material

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.xdist_group("faults")]


@pytest.mark.parametrize("area", AREAS)
def test_every_fault_is_survived(area: str, material: Material) -> None:
    tried, few, _ = AREAS[area]
    trials = list(tried(material, random.Random(area), few))
    assert len(trials) >= few
    assert [trial for trial in trials if trial.fault is not None] == []
