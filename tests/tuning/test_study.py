"""What is chosen depends on the seed and on earlier generations, not on who finishes first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from superlora_cli.tuning.schema import Space
from superlora_cli.tuning.space import Budget, SearchSpace
from superlora_cli.tuning.study import KEPT, Study
from tests.tuning.test_space import TARGETS

SPACE = {
    "forms": {"CP": {"order": [3, 4], "core": "identity"}, "LoRTA": {"method": "lorta"}},
    "ranges": {"train.optimizer.lr": {"low": 0.01, "high": 0.1, "log": True}},
    "trials": [{"form": "LoRTA", "train.optimizer.lr": 0.03}],
}
EIGHT, NEXT = range(8), range(8, 16)


def study(folder: Path, *, seed: int = 0, rung: int | None = None, higher: bool = True) -> Study:
    space = SearchSpace(Space.model_validate(SPACE), Budget(500), TARGETS, "space.yaml")
    return Study(folder / "study.log", space, higher=higher, rung=rung, seed=seed)


def params(of: Study) -> list[dict[str, Any]]:
    return [trial.params for trial in of.trials]


@pytest.mark.parametrize("order", [EIGHT, reversed(EIGHT)], ids=["in order", "reversed"])
def test_choices_do_not_depend_on_the_order_of_results(order: range, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    usual, own = study(tmp_path), study(tmp_path / "other")
    for one, numbers in ((usual, EIGHT), (own, list(order))):
        one.propose(EIGHT)
        for number in numbers:
            one.finish(number, one.trials[number].params["train.optimizer.lr"])
        one.propose(NEXT)
    assert params(own) == params(usual)
    assert params(own)[0] == SPACE["trials"][0]
    assert len({str(each) for each in params(own)}) == 16


def test_a_stopped_search_goes_on_with_the_same_choices(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    usual, stopped = study(tmp_path), study(tmp_path / "other")
    usual.propose(EIGHT)
    stopped.propose(range(3))  # killed before the others were chosen
    study(tmp_path / "other").propose(EIGHT)
    assert params(study(tmp_path / "other")) == params(usual)
    assert [trial.number for trial in stopped.active()] == list(EIGHT)


def test_another_seed_chooses_otherwise(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    usual, own = study(tmp_path), study(tmp_path / "other", seed=1)
    usual.propose(EIGHT)
    own.propose(EIGHT)
    assert params(own)[0] == params(usual)[0]
    assert params(own)[1:] != params(usual)[1:]


@pytest.mark.parametrize("higher", [True, False])
def test_at_the_rung_the_best_go_on(higher: bool, tmp_path: Path) -> None:
    tried = study(tmp_path, rung=4, higher=higher)
    tried.propose(EIGHT)
    values = [0.5, 0.1, 0.2, 0.9, 0.3, 0.8, 0.7, 0.6]
    stopped = [tried.stops(number, value if higher else -value) for number, value in enumerate(values)]
    assert stopped == [False, True, True, False, True, False, True, True]
    assert [trial.number for trial in tried.active()] == [0, 3, 5]
    assert not study(tmp_path, rung=4, higher=higher).stops(3, None)  # judged before a kill, it is not judged again
    assert KEPT == 3


def test_a_failed_trial_is_over_and_the_best_comes_first(tmp_path: Path) -> None:
    tried = study(tmp_path)
    tried.propose(range(3))
    for number, value in enumerate([0.5, None, 0.7]):
        tried.finish(number, value)
    assert tried.active() == []
    assert [trial.number for trial in study(tmp_path).finished()] == [2, 0]


def test_a_lock_left_by_a_killed_process_does_not_stop_the_search(tmp_path: Path) -> None:
    study(tmp_path).propose(range(1))
    (tmp_path / "study.log.lock").symlink_to(tmp_path / "study.log")
    assert len(study(tmp_path).trials) == 1


def test_importances_are_shares(tmp_path: Path) -> None:
    tried = study(tmp_path)
    tried.propose(EIGHT)
    assert tried.importances() == {}
    for number in EIGHT:
        tried.finish(number, tried.trials[number].params["train.optimizer.lr"])
    found = tried.importances()
    assert sum(found.values()) == pytest.approx(1)
    assert max(found, key=found.__getitem__) == "train.optimizer.lr"
