"""Every setting of a search space is within the budget, by its closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superlora_cli.adapter.config import RATE, AdapterConfig, usual_rate
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.analysis.recommended import recommended, recommended_of_bits
from superlora_cli.errors import UsageError
from superlora_cli.recipe.load import load_recipe
from superlora_cli.tuning.schema import Space
from superlora_cli.tuning.space import Budget, SearchSpace, usual_space
from tests.conftest import Cli

TARGETS = [TargetShape(f"q{index}", 64, 64) for index in range(6)]


def usual(budget: Budget, *overrides: str) -> SearchSpace:
    recipe = load_recipe("quickstart", overrides)
    return SearchSpace(usual_space(recipe, TARGETS, budget), budget, TARGETS, "the usual space")


def search(forms: dict[str, Any], most: int = 500, **others: Any) -> SearchSpace:
    return SearchSpace(Space.model_validate({"forms": forms, **others}), Budget(most), TARGETS, "space.yaml")


def test_a_rate_to_be_found_is_searched_for_around_the_usual_one_if_there_is_one() -> None:
    assert usual(Budget(500), "train.optimizer.lr=find").first == usual(Budget(500)).first
    with pytest.raises(UsageError, match="find: SGD has no usual rate"):
        usual(Budget(500), "train.optimizer={name: SGD, lr: find}")


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(64, 20_000), st.booleans(), st.data())
def test_every_setting_is_within_the_budget(most: int, in_bytes: bool, data: st.DataObject) -> None:
    budget = Budget(most, in_bytes)
    space = usual(budget)
    values = {
        key: data.draw(st.sampled_from(among) if isinstance(among, list) else st.floats(among.low, among.high))
        for key, among in {"form": list(space.forms), **space.space.ranges}.items()
    }
    knobs = dict(space.settings(values)["adapter"])
    made = plan(AdapterConfig.from_knobs(knobs.pop("method", None), **knobs), TARGETS)
    assert budget.size(made) == budget.size(space.offer(values).plan) <= most


@pytest.mark.parametrize("budget", [Budget(128), Budget(2000), Budget(64, in_bytes=True)])
def test_the_first_trial_is_what_count_params_recommends(budget: Budget) -> None:
    space = usual(budget)
    offer = recommended_of_bits(TARGETS, budget.most, 3) if budget.in_bytes else recommended(TARGETS, budget.most)
    assert offer is not None
    found = space.settings(space.first[0])
    assert {key: found["adapter"][key] for key in offer.offer.knobs} == offer.offer.knobs
    assert found["train.optimizer.lr"] == usual_rate(3 if budget.in_bytes else None)
    unset = AdapterConfig.from_knobs(defaults=2, **offer.offer.knobs)
    assert found["adapter"]["scaling"] == unset.scaling == "weights"


def test_under_sgd_the_rate_is_the_recipes_and_the_scale_is_left_alone() -> None:
    space = usual(Budget(128), "train.optimizer={name: SGD, lr: 0.5}").space
    assert "adapter.alpha" not in space.ranges
    assert space.ranges["train.optimizer.lr"].high == 2.5  # type: ignore[union-attr]
    assert not any("scaling" in knobs for knobs in space.forms.values())


def test_what_is_too_large_is_left_out_and_said() -> None:
    space = search({"CP": {"order": [3, 4], "core": "identity"}, "LoRA": {"method": "lora"}})
    assert list(space.forms) == ["CP, order 3", "CP, order 4"]
    assert [(one.form, one.why) for one in space.left_out] == [("LoRA", "the smallest has 768")]
    with pytest.raises(UsageError, match=r"no form has at most 500 parameters \(the smallest has 768\)"):
        search({"LoRA": {"method": "lora"}})


def test_numbers_are_rounded_and_knobs_go_to_the_adapter() -> None:
    space = search({"one": {"order": 2, "rank": 1}}, ranges={"train.optimizer.lr": {"low": 0.01, "high": 0.1}})
    found = space.settings({"form": "one", "train.optimizer.lr": 0.0123456, "adapter.alpha": 1.98765})
    assert found == {"adapter": {"order": 2, "rank": 1, "alpha": 1.99}, "train.optimizer.lr": 0.0123}


WRONG = {
    "ranges: {adapter.groups: {low: 1, high: 4}}": "space.yaml: ranges.adapter.groups: the size depends on it",
    "ranges: {train.optimizer.lr: {low: 1, high: 0.1}}": "space.yaml: ranges.train.optimizer.lr: 1 to 0.1 (low < high)",
    "ranges: {train.optimizer.lr: {low: 0, high: 0.1, log: true}}": "ranges.train.optimizer.lr: log from 0 (low > 0",
    "trials: [{form: LoTR}]": "space.yaml: trials.0.form: LoTR is not in the space (CP)",
    "trials: [{}]": "space.yaml: trials.0.form: missing",
    "trials: [{form: CP, adapter.alpha: 1}]": "space.yaml: trials.0: unknown key 'adapter.alpha'",
    "ranges: {train.optimzer.lr: [0.1]}": "train.optimzer.lr: unknown key 'optimzer'",
    "form: {}": "space.yaml:2: form: unknown key",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_space_is_one_clear_line(text: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(f"forms: {{CP: {{order: 3, core: identity}}}}\n{text}\n")
    found = cli("tune", "quickstart", "--budget", "128", "--space", "space.yaml", "--dry-run")
    assert found.code == 2
    assert WRONG[text] in found.err


def test_the_usual_rate_is_that_of_the_defaults() -> None:
    assert usual(Budget(128)).first[0]["train.optimizer.lr"] == RATE
