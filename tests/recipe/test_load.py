"""A recipe is found, read, overridden and checked; every problem is named by file, line and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.errors import UsageError
from superlora_cli.recipe.load import load_recipe, recipe_from_dict
from superlora_cli.recipe.overrides import parse_overrides
from superlora_cli.recipe.schema import recipe_model
from superlora_cli.recipe.yaml import dump_yaml

GOOD = """\
# the example
task: classification
seed: 0
model: {name: vit_base_patch16_224.orig_in21k, pretrained: true, head: new}
data: {name: torch/cifar100, root: data, image_size: 224, validation: 0.1, download: true}
adapter: {method: lorta, targets: [q, v], groups: 1, order: 3, rank: 4, alpha: 4, init: unit}
train:
  steps: 5000
  batch_size: 128
  precision: bf16
  optimizer: {name: SGD, lr: 5e-2, momentum: 0.9, weight_decay: 0.0, head_lr: 0.05}
  scheduler: {name: OneCycleLR, cycle_momentum: false}
  checkpoint_every: 500
  keep: 2
eval: {every: 500, batch_size: 256}
output: {trackers: [jsonl]}
"""
MINIMAL = "model: {name: m}\ndata: {name: digits}\ntrain: {steps: 1, optimizer: {lr: 0.1}}\n"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes recipe.yaml in the current folder, and gives its path relative to it."""
    monkeypatch.chdir(tmp_path)

    def to_file(text: str) -> Path:
        Path("recipe.yaml").write_text(text)
        return Path("recipe.yaml")

    return to_file


@pytest.fixture
def problems(write: Write) -> Callable[..., list[str]]:
    def lines(text: str, *overrides: str) -> list[str]:
        with pytest.raises(UsageError) as caught:
            load_recipe(write(text), overrides)
        return str(caught.value).splitlines()

    return lines


Problems = Callable[..., list[str]]


def test_the_example_loads_with_its_values_and_the_defaults(write: Write) -> None:
    recipe = load_recipe(write(GOOD))
    assert recipe.adapter is not None
    assert recipe.adapter.config() == AdapterConfig.from_knobs(
        "lorta", groups=1, order=3, rank=4, alpha=4.0, init="unit"
    )
    assert recipe.train.optimizer.lr == 0.05
    assert recipe.train.optimizer.keywords == {"momentum": 0.9, "weight_decay": 0.0}
    assert recipe.train.scheduler.keywords == {"cycle_momentum": False}
    assert (recipe.eval.select, recipe.output.dir, recipe.train.checkpoint_at) == ("validation", None, [])


def test_without_adapter_the_base_is_trained(write: Write) -> None:
    assert load_recipe(write(MINIMAL)).adapter is None
    assert load_recipe(write(GOOD), ["adapter=null"]).adapter is None


@pytest.mark.parametrize("text", [GOOD, MINIMAL, MINIMAL + "adapter: {rank: [full, 2], order: 2, core: dense}"])
def test_a_recipe_survives_dict_json_and_yaml(write: Write, text: str) -> None:
    recipe = load_recipe(write(text), ["model.kwargs={img_size: [8, 8], drop: null}", "model.head={select: [3, 1]}"])
    assert recipe_model().model_validate(recipe.to_dict()) == recipe
    assert recipe_from_dict(json.loads(recipe.to_json()), "run.json") == recipe
    assert load_recipe(write(dump_yaml(recipe.to_dict()))) == recipe
    assert recipe_from_dict(json.loads(recipe.to_json()), "run.json").to_json() == recipe.to_json()


def test_a_stored_recipe_is_checked_like_a_file() -> None:
    with pytest.raises(UsageError, match=r"^run\.json: model: missing"):
        recipe_from_dict({"seed": 1}, "run.json")
    with pytest.raises(UsageError, match="expected the keys of a recipe, got list"):
        recipe_from_dict([], "run.json")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("steps: 5000", "steps: many", "8: train.steps: expected a whole number ≥ 1, got 'many'"),
        ("steps: 5000", "steps: 0", "8: train.steps: expected a whole number ≥ 1, got 0"),
        ("steps: 5000", "steps: true", "8: train.steps: expected a whole number ≥ 1, got true"),
        ("steps: 5000", "steps: '5'", "8: train.steps: expected a whole number ≥ 1, got '5' (write 5, without quotes)"),
        ("steps: 5000", "steps: 5e3", "8: train.steps: expected a whole number ≥ 1, got 5000.0 (write 5000)"),
        ("steps: 5000", "steps:", "8: train.steps: missing, and so is train.epochs (set steps: 1000 or epochs: 20)"),
        ("steps: 5000", "steps: 5000\n  epochs: 2", "9: train.epochs: cannot be combined with train.steps"
         " (leave out one of the two; train.steps=null unsets it)"),
        ("keep: 2\neval: {every: 500, ", "patience: 2\neval: {",
         "14: train.patience: needs more than one evaluation"
         " (set eval.every, the number of steps between evaluations)"),
        ("steps: 5000", "stepz: 5", "8: train.stepz: unknown key 'stepz' (did you mean 'steps'?)"),
        ("  steps: 5000\n", "", "7: train.steps: missing, and so is train.epochs (set steps: 1000 or epochs: 20)"),
        ("keep: 2", "lr: 2", "14: train.lr: unknown key 'lr' (belongs under train.optimizer:)"),
        ("seed: 0", "steps: 0", "3: steps: unknown key 'steps' (belongs under train: or under diffusion:)"),
        ("seed: 0", "zzzz: 0", "3: zzzz: unknown key 'zzzz'"),
        ("seed: 0", "seed: -1", "3: seed: expected a whole number ≥ 0 and ≤ 4,294,967,295, got -1"),
        ("bf16", "off", "10: train.precision: expected 'fp32', 'bf16' or 'fp16', got 'off'"),
        ("download: true", "download: yes", "5: data.download: expected true or false, got 'yes'"),
        ("torch/cifar100", "10", '5: data.name: expected text, got 10 (write "10")'),
        ("validation: 0.1", "validation: 1", "5: data.validation: expected a number ≥ 0 and < 1, got 1"),
        ("[q, v]", "q", "6: adapter.targets: expected a non-empty list of text, got 'q' (write [q])"),
        ("lorta", "lortha",
         "6: adapter.method: expected 'dense', 'lora', 'lokr', 'lonkr', 'krona', 'loha', 'lotr', 'lorta',"
         " 'fact_tk', 'cara', 'unilora', 'nola', 'vblora', 'vera', 'randlora', 'lora_xs', 'tinylora', 'fourierft',"
         " 'hira', 'ia3', 'oft', 'dora', 'loda', 'shira', 'atoms', 'none' or 'bitfit',"
         " got 'lortha' (did you mean 'lorta'?)"),
        ("rank: 4", "rank: [4, ful]",
         "6: adapter.rank.1: expected a whole number or 'full', got 'ful' (did you mean 'full'?)"),
        ("head: new", "head: nwe",
         "4: model.head: expected 'new', 'frozen' or {select: …}, got 'nwe' (did you mean 'new'?)"),
        ("head: new", "head: {slect: [1]}", "4: model.head.slect: unknown key 'slect' (did you mean 'select'?)"),
        ("head: new", "head: {select: [1, a]}", "4: model.head.select.1: expected a whole number, got 'a'"),
        ("jsonl", "jsonl, csv", "16: output.trackers.1: expected 'jsonl', 'tensorboard' or 'wandb', got 'csv'"),
    ],
)  # fmt: skip
def test_one_problem_is_one_line(problems: Problems, old: str, new: str, line: str) -> None:
    assert old in GOOD
    assert problems(GOOD.replace(old, new)) == [f"recipe.yaml:{line}"]


def test_all_problems_come_at_once_in_the_order_of_the_file(problems: Problems) -> None:
    text = (
        GOOD.replace("steps: 5000", "steps: many").replace("root:", "rot:").replace("classification", "clasification")
    )
    lines = problems(text, "eval.evry=3", "adapter.rank=x")
    assert [line.split(": ")[0] for line in lines] == [
        "recipe.yaml:2", "recipe.yaml:5", "recipe.yaml:8", "eval.evry=3", "adapter.rank=x"
    ]  # fmt: skip


def test_knobs_that_do_not_go_together_are_named_with_their_line(problems: Problems) -> None:
    lines = problems(GOOD.replace("order: 3", "order: 3, fold: none"))
    assert lines[0].startswith("recipe.yaml:6: adapter.fold: fold none with order 3")
    assert problems(GOOD, "adapter.fold=none")[0].startswith("adapter.fold=none: fold none with order 3")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("adapter.rank=2", "adapter.rank", 2),
        ("train.optimizer.lr=1e-4", "train.optimizer.lr", 1e-4),
        ("train.optimizer.betas=[0.9, 0.99]", "train.optimizer.betas", [0.9, 0.99]),
        ("train.optimizer={lr: 1, name: SGD}", "train.optimizer", {"lr": 1.0, "name": "SGD"}),
        ('adapter.targets=["blocks.*.attn.qkv[q]"]', "adapter.targets", ["blocks.*.attn.qkv[q]"]),
        ("adapter.targets.1=k", "adapter.targets", ["q", "k"]),
        ("adapter.targets.2=o", "adapter.targets", ["q", "v", "o"]),
        ("data.name=a=b", "data.name", "a=b"),
        ("model.kwargs.depth=3", "model.kwargs", {"depth": 3}),
        ("output.dir=off", "output.dir", "off"),
    ],
)
def test_an_override_sets_its_key(write: Write, override: str, path: str, value: Any) -> None:
    data: Any = load_recipe(write(GOOD), [override]).to_dict()
    for part in path.split("."):
        data = data[part]
    assert data == value


def test_overrides_create_missing_keys_and_the_last_one_wins(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL), ["adapter.rank=2", "eval.every=5", "seed=1", "seed=2"])
    assert recipe.adapter is not None
    assert (recipe.adapter.rank, recipe.adapter.targets, recipe.eval.every, recipe.seed) == (2, ["q", "v"], 5, 2)
    removed = load_recipe(write(GOOD), ["adapter=null", "adapter.rank=3"]).adapter
    assert removed is not None
    assert removed.knobs == {"rank": 3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rnk=2", "unknown key 'rnk' (did you mean 'rank'?)"),
        ("trian.steps=5", "unknown key 'trian' (did you mean 'train'?)"),
        ("batch_size=3", "unknown key 'batch_size' (belongs under train: or under eval:)"),
        ("batchsize=3", "unknown key 'batchsize' (did you mean 'train.batch_size'?)"),
        ("train.steps=many", "expected a whole number ≥ 1, got 'many'"),
        ("train.optimizer={name: SGD}", "train.optimizer.lr: missing, expected a number ≥ 0 (SGD has no default "
         "learning rate)"),
        ("train.steps", "expected KEY=VALUE (e.g. adapter.rank=2)"),
        ("a..b=1", "expected KEY=VALUE (e.g. adapter.rank=2)"),
        ("adapter.targets.5=q", "index 5 is out of range: adapter.targets has 2 items"),
        ("adapter.targets.-1=q", "adapter.targets is a list, and '-1' is not an index"),
        ("model.head.select=[1]", "model.head is 'new', which has no keys (model.head={select: …})"),
        ("seed=[1", "expected ',' or ']', but got '<stream end>', while parsing a flow sequence"),
        ("adapter.targets=[*.qkv]",
         "expected alphabetic or numeric character, but found '.', while scanning an alias"
         ' (quote patterns: "*.qkv")'),
    ],
)  # fmt: skip
def test_a_bad_override_is_named_by_its_text(problems: Problems, override: str, message: str) -> None:
    assert problems(GOOD, override) == [f"{override}: {message}"]


values: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**32 - 1),
    "data.name": st.text(min_size=1).filter(lambda text: text.isprintable()),
    "data.validation": st.floats(0, 1, exclude_max=True),
    "adapter.targets": st.lists(st.text(max_size=8).filter(str.isprintable), min_size=1),
    "adapter.ratio": st.floats(0, 1, exclude_min=True),
    "train.optimizer.lr": st.floats(0, 10),
    "train.gradient_checkpointing": st.booleans(),
    "model.head": st.sampled_from(["new", "frozen", {"select": [1, 2]}]),
}
pairs = st.sampled_from(sorted(values)).flatmap(lambda key: st.tuples(st.just(key), values[key]))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs)
def test_a_value_written_as_yaml_comes_back_from_an_override(pair: tuple[str, Any]) -> None:
    key, value = pair
    (override,) = parse_overrides([f"{key}={dump_yaml(value)}"])
    assert (".".join(override.path), override.value) == pair
    base = {"model": {"name": "m"}, "data": {"name": "d"}, "train": {"steps": 1, "optimizer": {"lr": 1}}}
    extra = ["adapter.projection=linear"] if key == "adapter.ratio" else []
    data: Any = recipe_from_dict(base, "test", [f"{key}={dump_yaml(value)}", *extra]).to_dict()
    for part in override.path:
        data = data[part]
    assert data == value


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=12), st.text(max_size=12))
def test_any_override_works_or_is_a_usage_error(key: str, value: str) -> None:
    base = {"model": {"name": "m"}, "data": {"name": "d"}, "train": {"steps": 1, "optimizer": {"lr": 1}}}
    for text in (f"{key}={value}", f"train.{key}={value}", f"adapter.targets={value}", f"model.head={value}"):
        message = ""
        try:
            recipe_from_dict(base, "test", [text])
        except UsageError as error:
            message = str(error)
        assert all(line.isprintable() for line in message.split("\n"))
