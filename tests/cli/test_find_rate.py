"""`superlora find-rate`: one proposal, one picture, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from superlora_cli.commands import train
from superlora_cli.training.run import RunFolder
from tests.conftest import QUICK, Cli, contents

SMALL = ("quickstart", "train.batch_size=8", "train.threads=1")


def test_a_rate_a_curve_and_a_picture_are_all_that_is_left(cli: Cli) -> None:
    result = cli("find-rate", *SMALL, "--plot", "rate.png", "--json")
    found = result.json()
    assert set(found) == {"rate", "curve", "plot"}
    rates = [rate for rate, _ in found["curve"]]
    assert 2 < len(rates) <= 60
    assert rates == sorted(rates)
    assert found["rate"] == pytest.approx(rates[-1] / 20, rel=0.4)
    assert found["plot"] == "rate.png"
    assert set(contents(Path())) == {"rate.png"}
    assert len(Image.open("rate.png").convert("L").getcolors() or []) > 10


@pytest.mark.slow
def test_the_recipes_own_rate_does_not_matter_and_the_table_says_how_to_train(cli: Cli) -> None:
    one = cli("find-rate", *SMALL, "train.optimizer.lr=7", "--json").json()
    other = cli("find-rate", *SMALL)
    assert f"train.optimizer.lr={one['rate']:g}" in "".join(other.out.split())
    assert one["plot"] is None
    assert not contents(Path())


@pytest.mark.slow
def test_a_diffusion_recipe_gets_one_too(cli: Cli) -> None:
    found = cli("find-rate", "digits_unet_lorta3d", "train.batch_size=4", "train.threads=1", "--json").json()
    assert 0.01 < found["rate"] < 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("quickstart", "adapter.rnk=2"), ("adapter.rnk", "rank")),
        (("nonsense",), ("nonsense",)),
        ((*SMALL, "--plot", "rate.txt"), ("rate.txt", "ends in .svg")),
        ((*SMALL, "--plot", "none/rate.svg"), ("no such folder", "none")),
        ((*SMALL, "train.optimizer.name=Adamm"), ("Adamm", "Adam")),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    words: tuple[str, ...], says: tuple[str, ...], cli: Cli
) -> None:
    result = cli("find-rate", *words)
    assert result.code == 2
    assert all(word in result.message for word in says)
    assert not contents(Path())


@pytest.mark.slow
def test_a_run_with_the_rate_it_found_is_that_of_the_rate_given(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = cli("find-rate", *QUICK, "--json").json()["rate"]
    given = cli("train", *QUICK, f"train.optimizer.lr={rate}", "--out", "given", "--json").json()
    finds = (*QUICK, "train.optimizer.lr=find", "--out", "found")
    record = RunFolder.record

    def dying(run: RunFolder, step: int, *figures: Any) -> None:
        if step == 6:
            raise MemoryError("as if the machine went down")
        record(run, step, *figures)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", dying)
        assert cli("train", *finds).code == 1
    monkeypatch.setattr(train, "range_test", lambda *_: pytest.fail("it is not found a second time"))
    found = cli("train", *finds, "--resume", "auto", "--json").json()
    assert (found["found_rate"], "found_rate" in given) == (rate, False)
    for name in ("adapter.safetensors", "eval.json", "recipe.yaml"):
        assert Path("found", name).read_bytes() == Path("given", name).read_bytes()
    assert json.loads(Path("found/run.json").read_text())["found_rate"] == rate
    changed = cli("train", *QUICK, "train.optimizer.lr=0.5", "train.steps=7", "--resume", "found", "--json").json()
    assert "found_rate" not in changed
    Path("found/recipe.yaml").unlink()
    lost = cli("train", *finds, "--resume", "found")
    assert (lost.code, "found/recipe.yaml: does not say the rate that the run found" in lost.message) == (2, True)


def test_a_dry_run_needs_no_rate(cli: Cli) -> None:
    assert cli("train", *QUICK, "train.optimizer.lr=find", "--dry-run").code == 0
    wrong = cli("train", *QUICK, "train.optimizer.lr=seek", "--dry-run")
    assert (wrong.code, "expected a number ≥ 0 or 'find', got 'seek'" in wrong.message) == (2, True)
