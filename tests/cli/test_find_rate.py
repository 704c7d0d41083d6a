"""`superlora find-rate`: one proposal, one picture, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Cli, contents

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
