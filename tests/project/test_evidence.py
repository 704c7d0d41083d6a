"""What is recommended for a number of parameters is what docs/real-base.md measured as good there."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from superlora_cli.analysis.recommended import MEASURED, recommended

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def head_to_head(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark on the embedded base, whose file of results is committed."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import head_to_head

    return head_to_head


@pytest.fixture
def real_base(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark on a real base, whose file of results is committed."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import real_base

    return real_base


@pytest.mark.parametrize("budget", [512, 4_096, 20_000])
def test_a_recommendation_was_measured_and_no_other_setting_is_clearly_better(
    budget: int, real_base: ModuleType
) -> None:
    from evidence import Difference
    from few_shot import RECORDS, share

    best = recommended(MEASURED, budget)
    assert best is not None
    found = [rows for rows in real_base.finished() if rows.method.ours]
    knobs = {"groups": 1, **best.offer.knobs}
    (own,) = [rows for rows in found if {"groups": 1, "order": 2, **rows.method.settings} == knobs | real_base.SCALED]
    assert own.parameters == best.offer.plan.params <= budget
    runs = RECORDS.known()
    at_rate = [share(runs[real_base.run(own.method, rate, 0).key]["validation"]) for rate in (own.rate, best.lr)]
    assert at_rate[1] >= at_rate[0] - 0.03  # one rate for all of them
    for rows in found:
        if rows.parameters <= budget:
            assert not Difference.of(rows, own).clear, rows.method


def test_every_method_on_record_has_all_its_seeds(head_to_head: ModuleType) -> None:
    wanted = [method for part in head_to_head.PARTS.values() for method in part]
    assert len(head_to_head.finished(wanted)) == len(wanted)
    keys = [row["run"] for row in head_to_head.RECORDS.rows()]
    assert len(keys) == len(set(keys))
