"""A sweep file becomes runs with stable names and counted parameters, without torch; what is wrong is named by line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from superlora_cli.errors import UsageError
from superlora_cli.recipe.load import load_recipe
from superlora_cli.sweeping.plan import SweepPlan, load_plan
from tests.sweeping.conftest import TINY, Write

MANY = """\
recipe: digits_lora
set: {train.steps: 7}
grid: {adapter.rank: [1, 2], train.optimizer.lr: [0.1, 0.2]}
runs:
  - {adapter.method: lorta, adapter.order: 3, adapter.rank: 4}
  - {recipe: digits_2d, grid: {adapter.groups: [1, 4]}}
  - {recipe: digits_dense, train.steps: 9}
"""


def ids(plan: SweepPlan) -> list[str]:
    return [run.id for run in plan.runs]


def error(write: Write, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_plan(write(text))
    return str(caught.value)


def test_grid_then_list_seeds_innermost(write: Write) -> None:
    plan = load_plan(write(MANY + "seeds: [3, 5]\n"))
    said = [(run.name, *run.overrides.values(), run.recipe.train.steps, run.recipe.seed) for run in plan.runs]
    assert said[:5] == [
        ("digits_lora", 1, 0.1, 7, 3), ("digits_lora", 1, 0.1, 7, 5), ("digits_lora", 1, 0.2, 7, 3),
        ("digits_lora", 1, 0.2, 7, 5), ("digits_lora", 2, 0.1, 7, 3),
    ]  # fmt: skip
    assert said[8:] == [
        ("digits_lora", "lorta", 3, 4, 7, 3), ("digits_lora", "lorta", 3, 4, 7, 5), ("digits_2d", 1, 7, 3),
        ("digits_2d", 1, 7, 5), ("digits_2d", 4, 7, 3), ("digits_2d", 4, 7, 5), ("digits_dense", 9, 9, 3),
        ("digits_dense", 9, 9, 5),
    ]  # fmt: skip


def test_a_run_is_the_recipe_with_the_overrides_on_one_thread(write: Write) -> None:
    run = load_plan(write(TINY)).runs[3]
    words = ("train.steps=6", "eval.every=3", "train.checkpoint_every=3", "seed=1", "adapter.rank=2", "train.threads=1")
    assert run.recipe == load_recipe("quickstart", words)
    assert (run.params, run.impossible) == ({"adapter": 90, "head": 0, "base": 304_970}, None)
    more = load_plan(write(TINY.replace("set: {", "set: {train.threads: 3, ")))
    assert {run.recipe.train.threads for run in more.runs} == {3}


def test_an_id_names_the_settings_and_does_not_depend_on_other_runs(write: Write) -> None:
    before = load_plan(write(TINY))
    assert [name.rpartition("-")[0] for name in ids(before)] == [
        "quickstart-rank1-s0", "quickstart-rank1-s1", "quickstart-rank2-s0", "quickstart-rank2-s1"
    ]  # fmt: skip
    text = TINY.replace("[1, 2]", "[3, 2, 1]").replace("[0, 1]", "[7, 1, 0]") + "runs: [{recipe: digits_lora}]\n"
    assert set(ids(before)) < set(ids(load_plan(write(text))))
    assert not set(ids(before)) & set(ids(load_plan(write(TINY.replace("steps: 6", "steps: 7")))))


def test_a_run_found_twice_counts_once(write: Write) -> None:
    text = TINY + "runs: [{adapter.rank: 2}, {grid: {adapter.rank: [1, 4]}}]\n"
    assert [run.overrides["adapter.rank"] for run in load_plan(write(text)).runs] == [1, 1, 2, 2, 4, 4]


def test_a_recipe_is_a_path_relative_to_the_file_or_a_shipped_name(write: Write, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.yaml").write_text("model: {name: glyphs_vit}\ndata: {name: digits}\n"
                                                 "train: {steps: 1, optimizer: {lr: 0.1}}\n")  # fmt: skip
    (tmp_path / "here" / "sweep.yaml").write_text("recipe: mine.yaml\n")
    (run,) = load_plan(tmp_path / "here" / "sweep.yaml").runs
    assert (run.name, run.overrides, run.params["adapter"]) == ("mine", {}, 0)
    assert load_plan(write("recipe: quickstart\n")).runs[0].name == "quickstart"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grids: {a: [1]}\n", "sweep.yaml:1: grids: unknown key 'grids' (did you mean 'grid'?)"),
        ("recipe: quickstrat\n", "sweep.yaml:1: recipe: no such file or shipped recipe: quickstrat (did you mean"),
        ("seeds: [0]\n", "sweep.yaml:1: recipe: missing, expected the name of a recipe"),
        ("recipe: quickstart\ngrid: {adapter.rank: 3}\n",
         "sweep.yaml:2: grid.adapter.rank: expected a non-empty list of anything, got 3"),
        ("recipe: quickstart\ngrid:\n  adapter.rnk: [3]\n",
         "sweep.yaml:3: adapter.rnk: unknown key 'rnk' (did you mean 'rank'?)"),
        ("recipe: quickstart\nset:\n  train.steps: many\n",
         "sweep.yaml:3: train.steps: expected a whole number ≥ 1, got 'many'"),
        ("recipe: quickstart\nruns:\n  - {adapter.rank: 1}\n  - {steps: 1}\n",
         "sweep.yaml:4: steps: unknown key 'steps' (belongs under train: or under diffusion:)"),
        ("recipe: quickstart\nset: {seed: 1}\nseeds: [0]\n", "sweep.yaml:2: seed: the seed is set twice"),
        ("recipe: quickstart\ngrid: {output.dir: [a, b]}\n", "sweep.yaml:2: output.dir: the sweep sets the folders"),
        ("recipe: quickstart\nmeasure: {against: \"digits:test\"}\n", "sweep.yaml:2: measure: only diffusion runs"),
        ("recipe: digits_unet_lora\nmeasure:\n  against: digits:test\n  num: 23\n",
         "sweep.yaml:4: measure.num: expected a whole number ≥ 24, got 23"),
        ("recipe: quickstart\nset: {model.name: glyphs_vti}\n", "glyphs_vti"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_line(write: Write, text: str, said: str) -> None:
    assert said in error(write, text)


def test_impossible_runs_are_refused_or_left_out(write: Write) -> None:
    text = "recipe: digits_lora\ngrid: {adapter.rank: [64, 65, 66]}\n"
    plan = load_plan(write(text))
    assert [run.impossible is None for run in plan.runs] == [True, False, False]
    with pytest.raises(UsageError, match=r"2 of 3 runs are impossible:\ndigits_lora-rank65-s0") as caught:
        plan.checked()
    assert "skip_impossible: true" in str(caught.value.hint)
    assert len(load_plan(write(text + "skip_impossible: true\n")).checked()) == 1
    with pytest.raises(UsageError, match="all of its runs are impossible"):
        load_plan(write("recipe: digits_lora\nset: {adapter.rank: 65}\nskip_impossible: true\n")).checked()


def test_a_plan_needs_neither_torch_nor_numpy(write: Write) -> None:
    path = write(MANY).absolute()
    script = (
        f"import sys; from superlora_cli.sweeping.plan import load_plan; load_plan({str(path)!r});"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
