"""`train.local`: groups of layers are trained one after another, and a resumed run ends with the same bytes."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from superlora_cli.adapter import store
from superlora_cli.adapter.module import SuperLora
from superlora_cli.errors import UsageError
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import load_recipe
from superlora_cli.training.checkpoints import load_state
from superlora_cli.training.learner import Learner
from superlora_cli.training.local import Local
from tests.conftest import Cli

SHORT = (
    "digits_lora", "adapter.scaling=null", "adapter.rank=1", "train.batch_size=8", "eval.every=9", "train.steps=9",
    "train.local.groups=3", "train.checkpoint_every=1", "train.keep=9", "data.validation=0.05",
)  # fmt: skip


def steps_of(run: str) -> list[dict[str, torch.Tensor]]:
    """The factors after every step."""
    folders = sorted(Path(run, "checkpoints").glob("step-*"))
    return [dict(store.load(folder / "adapter.safetensors").factors) for folder in folders]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("train.ema=0.5", "train.clip_norm=1.0", "model.head=new")])
def test_groups_move_in_turn_and_a_resumed_run_ends_with_the_same_bytes(more: tuple[str, ...], cli: Cli) -> None:
    whole = cli("train", *SHORT, *more, "--out", "whole", "--json")
    assert whole.json()["params"]["adapter"] == 1536
    assert "blocks.0 to blocks.1 until step 3, blocks.2 to blocks.3 until step 6" in whole.err
    result = Path("whole/adapter.safetensors").read_bytes()
    if not more:
        for step, (before, now) in enumerate(zip(steps_of("whole"), steps_of("whole")[1:], strict=False), 1):
            moved = [
                row
                for name, factor in now.items()
                for row in (factor != before[name]).flatten(1).any(1).nonzero().flatten().tolist()
            ]
            first = 4 * (step // 3)
            assert set(moved) == {first, first + 1, first + 2, first + 3}
    state = load_state(Path("whole/checkpoints/step-000005"))
    moments = [own["exp_avg"].shape[0] for own in state["optimizer"]["state"].values()]
    assert moments[:2] == [4, 4]  # of 12 weights
    for kept in (3, 5):  # between two turns, and inside one
        shutil.copytree("whole", "again")
        for folder in Path("again/checkpoints").glob("step-*"):
            if int(folder.name[5:]) > kept:
                shutil.rmtree(folder)
        assert cli("train", *SHORT, *more, "--out", "again", "--resume", "again").code == 0
        assert Path("again/adapter.safetensors").read_bytes() == result, kept
        shutil.rmtree("again")
    other = cli("train", *SHORT, *more, "train.local.groups=2", "train.steps=12", "--out", "whole", "--resume", "whole")
    assert other.code == 2
    assert "other layers" in other.message


def learning(*more: str, **state: Any) -> tuple[SuperLora, Learner, list[int]]:
    """An adapter, its learner, and the steps at which the turns of its groups end."""
    recipe = load_recipe("digits_lora", ["train.steps=9", "train.local.groups=3", *more])
    adapter = build_for_training(recipe).adapter
    local = Local.of(recipe.train, adapter)
    assert adapter is not None
    assert local is not None
    return adapter, Learner(dict(adapter.factors.items()), {}, {}, recipe.train, local=local, **state), local.ends


def take(adapter: SuperLora, learner: Learner, step: int) -> None:
    """A step with gradients that depend on its number only."""
    for factor in adapter.factors.values():
        factor.grad = torch.randn(factor.shape, generator=torch.Generator().manual_seed(step))
    learner.update(last=step == 8)


@pytest.mark.parametrize("kept", [3, 5])  # between two turns, and inside one
def test_a_resumed_learner_ends_with_the_same_numbers(kept: int) -> None:
    ema = ("train.ema=0.5", "train.clip_norm=1.0")
    adapter, learner, _ = learning(*ema)
    state: dict[str, Any] = {}
    for step in range(9):
        if step == kept:
            state = copy.deepcopy(learner.state())
        take(adapter, learner, step)
    again, resumed, _ = learning(*ema, start=kept, state=state)
    for step in range(kept, 9):
        take(again, resumed, step)
    for name, factor in adapter.factors.items():
        assert torch.equal(again.factors[name], factor)
        assert torch.equal(resumed.average[name], learner.average[name])  # type: ignore[index]
    with pytest.raises(UsageError, match=r"train\.local: the checkpoint was written while other layers were trained"):
        learning(*ema, "train.local.groups=2", start=kept, state=state)


def test_every_group_has_a_schedule_and_an_optimizer_of_its_own() -> None:
    adapter, learner, ends = learning()
    rates, sizes = [], []
    for step in range(9):
        rates.append(learner.lr)
        sizes.append([len(parameter) for parameter in learner.parameters.values()])
        take(adapter, learner, step)
    assert ends == [3, 6, 9]
    assert rates[:3] == rates[3:6] == rates[6:]
    assert len(set(rates)) == 3
    assert sizes == [[4, 4]] * 9


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("adapter.method=lorta", "adapter.order=3"), "train.local.groups: 3 groups of 6 layers, which share units"),
        (("train.local.groups=7",), "train.local.groups: 7 groups of 6 layers (at most 6)"),
        (("train.steps=2",), "train.local.groups: 3 groups in 2 steps (at most 2)"),
        (("train.patience=2",), "train.local: with `train.patience`, groups might never be trained"),
        (("adapter.also=[bias]",), "train.local: `adapter.also` trains tensors of all layers"),
        (("adapter.method=none", "model.head=new"), "train.local: needs an adapter with factors"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_cannot_be_trained_in_turn_is_refused(
    words: tuple[str, ...], why: str, dry: tuple[str, ...], cli: Cli
) -> None:
    refused = cli("train", *SHORT, *words, "--out", "run", *dry)
    assert refused.code == 2
    assert why in refused.message
    assert not Path("run").exists()


def test_a_dry_run_says_the_memory_of_the_first_group(cli: Cli) -> None:
    local = cli("train", *SHORT, "--dry-run", "--json").json()["memory"]
    usual = cli("train", *SHORT, "train.local=null", "--dry-run", "--json").json()["memory"]
    assert local["activations"] < usual["activations"]
    assert local["adapter"] < usual["adapter"]
    assert json.dumps(local)
