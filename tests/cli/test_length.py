"""How long a training is: steps, passes over the images, or until nothing gets better."""

from __future__ import annotations

from pathlib import Path

import pytest

from superlora_cli.recipe.load import load_recipe
from tests.cli.test_train import lose_power, reference_of, steps_of, stop_at, uninterrupted
from tests.conftest import QUICK, Cli, metrics

FEW = ("data={name: glyphs, train_images: 50, eval_images: 20}",)
EPOCHS = (*FEW, "train.steps=null", "train.epochs=2", "train.batch_size=8", "train.accumulate=2")
TIRED = (*FEW, "train.patience=2", "eval.every=1", "train.checkpoint_every=1", "train.optimizer.lr=0")


def test_epochs_become_the_steps_that_the_images_are_enough_for(cli: Cli) -> None:
    result = cli("train", *QUICK, *EPOCHS, "--out", "run", "--json").json()
    assert result["steps"] == 2 * (50 // (2 * 8))
    train = load_recipe("run/recipe.yaml").train
    assert (train.steps, train.epochs) == (result["steps"], None)


@pytest.mark.slow
def test_a_resumed_run_of_epochs_equals_an_uninterrupted_one(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*EPOCHS, "train.checkpoint_every=1")
    with uninterrupted(tmp_path / "run", *words):
        stop_at(monkeypatch, 4, lose_power)
        assert cli("train", *QUICK, *words, "--out", "run").code != 0
        resumed = cli("train", *QUICK, *words, "--out", "run", "--resume", "auto")
        assert resumed.code == 0
        assert "changed recipe" not in resumed.err


def test_a_dry_run_says_epochs_without_reading_the_data(cli: Cli) -> None:
    words = ("train", "quickstart", "train.steps=null", "train.epochs=7", "--dry-run")
    plan = cli(*words, "--json").json()
    assert (plan["steps"], plan["images"], plan["epochs"]) == (None, None, 7)
    assert "7" in next(line for line in cli(*words).out.splitlines() if "epochs" in line)


def test_a_training_ends_after_evaluations_without_a_better_one(cli: Cli) -> None:
    result = cli("train", *QUICK, *TIRED, "--out", "run", "--json")
    assert "ended at step 3: 2 evaluations without improvement since step 1" in result.err
    found = result.json()
    assert (found["status"], found["steps"], found["ended_early"]) == ("completed", 3, True)
    assert found["metrics"]["best_step"] == 1
    assert steps_of(Path("run"), "eval") == [1, 2, 3]
    again = cli("train", *QUICK, *TIRED, "--out", "run", "--resume", "auto", "--json").json()
    assert (again["steps"], again["ended_early"], again["metrics"]) == (3, True, found["metrics"])


def test_a_training_that_gets_better_goes_on_to_its_end(cli: Cli) -> None:
    words = (*FEW, "train.patience=6", "eval.every=1")
    found = cli("train", *QUICK, *words, "--json").json()
    assert (found["steps"], found["ended_early"]) == (6, False)


def test_a_resumed_run_waits_as_long_as_an_uninterrupted_one(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with uninterrupted(tmp_path / "run", *TIRED):
        stop_at(monkeypatch, 3, lose_power)
        assert cli("train", *QUICK, *TIRED, "--out", "run").code != 0
        assert cli("train", *QUICK, *TIRED, "--out", "run", "--resume", "auto").code == 0
    assert metrics(tmp_path / "run") == metrics(reference_of(*TIRED))


def test_a_sweep_of_epochs_says_that_its_steps_are_not_known_yet(cli: Cli) -> None:
    Path("few.yaml").write_text(
        "recipe: quickstart\nset: {train.steps: null, train.epochs: 2}\ngrid: {adapter.rank: [1, 2]}"
    )
    found = cli("sweep", "few.yaml", "--dry-run", "--json").json()
    assert found["time"]["steps"] is found["time"]["seconds"] is None
    assert "2 runs, ? steps to go; time: unknown" in cli("sweep", "few.yaml", "--dry-run").out
