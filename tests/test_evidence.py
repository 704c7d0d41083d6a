"""What is recommended for a number of parameters is what docs/evidence.md measured as good there."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from superlora_cli.analysis.recommended import MEASURED, recommended

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def head_to_head(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, whose file of results is committed."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import head_to_head

    return head_to_head


@pytest.mark.parametrize("budget", [64, 128, 256, 300, 444, 888, 1776])
def test_a_recommendation_was_measured_and_none_of_ours_is_clearly_better(
    budget: int, head_to_head: ModuleType
) -> None:
    from evidence import Difference

    best = recommended(MEASURED, budget)
    assert best is not None
    found = [rows for rows in head_to_head.finished(head_to_head.compared()) if rows.method.ours]
    knobs = {"groups": 1, "order": 2} | best.offer.knobs
    (own,) = [rows for rows in found if {"groups": 1, "order": 2} | rows.method.settings == knobs]
    assert own.parameters == best.offer.plan.params <= budget
    runs = head_to_head.known()
    at_rate = [runs[head_to_head.key(own.method, rate, 0)]["validation"] for rate in (own.rate, best.lr)]
    assert at_rate[1] >= at_rate[0] - 0.03  # one rate for all of them
    for rows in found:
        if rows.parameters <= budget:
            assert not Difference.of(rows, own).clear, rows.method


def test_every_method_on_record_has_all_its_seeds(head_to_head: ModuleType) -> None:
    wanted = [method for part in head_to_head.PARTS.values() for method in part]
    assert len(head_to_head.finished(wanted)) == len(wanted)
    keys = [json.loads(line)["run"] for line in head_to_head.RESULTS.read_text().splitlines()]
    assert len(keys) == len(set(keys))
