"""A training that lost what it had learned says so, and no other does."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from superlora_cli.training.relapse import relapse
from tests.cli.test_train import send, stop_at
from tests.conftest import Cli

GUESSING = 2.303
DIVERGING = ("digits_lora", "train.optimizer.lr=0.3", "train.steps=40", "train.batch_size=16", "train.threads=1",
             "train.log_every=5", "eval.every=null", "train.checkpoint_every=null")  # fmt: skip


def recorded(*losses: float, apart: int = 10) -> list[tuple[int, float]]:
    return [(apart * number, loss) for number, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(
    "losses",
    [
        (1.8, 1.2, 0.9, 0.8, 0.7),
        (1.8, 1.2, 0.9, 1.0, 0.97),  # noise
        (2.31, 2.30, 2.32, 2.29, 2.31),  # a rate that is too low
        (1.2, 0.5, 1.4, 0.6, 0.45),  # it recovered
        (4.0, 3.1, 2.5, 2.2, 1.9),  # a base that was worse than guessing
        (1.9,),
        (),
        (0.04, 0.03, 0.05, 0.02, 0.03),
    ],
)
def test_a_loss_that_stays_low_is_not_a_relapse(losses: tuple[float, ...]) -> None:
    assert relapse(recorded(*losses), GUESSING) is None


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ((1.8, 1.2, 1.9, 2.3, 2.25), "fell to 1.2 by step 20, rose to 2.3 by step 40 and ends at 2.25"),
        ((1.2, 0.4, 1.9, 1.1, 0.6), "fell to 0.4 by step 20, rose to 1.9 by step 30 and ends at 0.6"),
        ((2.82, 2.74, 2.55, 2.45, 2.46), "ends at 2.46, no better than guessing (2.3)"),
        ((2.82, 2.74, 2.55, 2.31, 2.28), "ends at 2.28, no better than guessing (2.3)"),
    ],
)
def test_a_loss_halfway_back_to_guessing_is_a_relapse(losses: tuple[float, ...], says: str) -> None:
    assert says in (relapse(recorded(*losses), GUESSING) or "")


def test_single_batches_are_averaged_over_ten_steps_and_a_twentieth_of_the_run() -> None:
    spike = [0.5] * 95 + [3.0] + [0.5] * 4
    assert relapse(recorded(*spike, apart=1), GUESSING) is None
    assert relapse(recorded(*[0.5] * 90, *[3.0] * 10, apart=1), GUESSING)
    assert relapse(recorded(*[0.5] * 990, *[2.5] * 10, apart=1), GUESSING) is None
    assert relapse(recorded(*[0.5] * 950, *[2.5] * 50, apart=1), GUESSING)


@pytest.mark.slow
def test_a_divergence_without_nan_gives_a_warning_everywhere(cli: Cli) -> None:
    result = cli("train", *DIVERGING, "--out", "run", "--json")
    warning, worse = result.json()["warnings"]
    assert "worse than the unadapted model" in worse
    assert "learning rate 0.3 is too high" in warning
    assert "superlora find-rate run/recipe.yaml" in warning
    assert json.loads(Path("run/run.json").read_text())["warnings"] == [warning, worse]
    assert f"warning: {warning}" in Path("run/log.txt").read_text()
    assert f"warning: {warning}" in result.err
    again = cli("train", *DIVERGING, "--resume", "run", "--quiet")
    assert "too high" in again.out
    assert again.err == ""


def test_a_stopped_run_reports_divergence_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 35, send(signal.SIGTERM))
    assert cli("train", *DIVERGING, "--out", "run").code == 130
    about = json.loads(Path("run/run.json").read_text())
    assert about["status"] == "interrupted"
    assert len(about["warnings"]) == 1


def test_a_good_rate_gives_no_warning(cli: Cli) -> None:
    result = cli("train", *DIVERGING, "train.optimizer.lr=0.01", "--out", "run", "--json")
    assert "warnings" not in result.json()
    assert "warnings" not in json.loads(Path("run/run.json").read_text())
