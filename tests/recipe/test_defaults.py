"""What unset keys mean is a matter of the version of the defaults, which a run keeps.

`version1` was written by the last release before defaults had versions: a recipe without alpha and schedule, and its
run with the checkpoint of step 20 of 40. `version2` was written before version 3: a recipe with a projection and
without alpha, and its run with the checkpoint of step 4 of 8.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from superlora_cli.adapter.config import NEWEST, RATE
from superlora_cli.errors import UsageError
from superlora_cli.recipe.load import load_recipe, recipe_from_dict
from tests.conftest import Cli

OLD, SECOND = (Path(__file__).parent / name for name in ("version1", "version2"))
ADAPTED = "model: {name: glyphs_vit}\ndata: {name: digits}\nadapter: {method: lorta}\ntrain: {steps: 1}\n"


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "run", tmp_path / "run"))


def test_an_old_run_is_resumed_with_its_old_defaults(cli: Cli, run: Path) -> None:
    uninterrupted = load_file(run / "adapter.safetensors")
    (run / "adapter.safetensors").unlink()
    assert cli("train", OLD / "recipe.yaml", "--resume", run, "--quiet").code == 0
    resumed = load_file(run / "adapter.safetensors")
    assert resumed.keys() == uninterrupted.keys()
    for name, tensor in uninterrupted.items():
        assert torch.allclose(resumed[name], tensor, atol=1e-4), name
    assert "→" not in (run / "log.txt").read_text()  # no key of the recipe has changed


def test_an_old_adapter_is_evaluated_as_before(cli: Cli, run: Path) -> None:
    before = json.loads((run / "eval.json").read_text())
    found = cli("eval", run, "--json").json()
    assert found["metrics"]["accuracy"] == pytest.approx(before["metrics"]["accuracy"], abs=0.004)
    assert found["metrics"]["loss"] == pytest.approx(before["metrics"]["loss"], abs=1e-3)


def test_a_run_of_version_2_keeps_its_alpha(cli: Cli, tmp_path: Path) -> None:
    run = Path(shutil.copytree(SECOND / "run", tmp_path / "second"))
    uninterrupted = load_file(run / "adapter.safetensors")
    (run / "adapter.safetensors").unlink()
    assert cli("train", SECOND / "recipe.yaml", "--resume", run, "--quiet").code == 0
    for name, tensor in load_file(run / "adapter.safetensors").items():
        assert torch.allclose(tensor, uninterrupted[name], atol=1e-4), name
    assert "→" not in (run / "log.txt").read_text()


def test_under_a_projection_alpha_grows_as_rho_falls() -> None:
    for recipe, alpha, version in ((SECOND / "recipe.yaml", 3.6, 3), (SECOND / "run/recipe.yaml", None, 2)):
        loaded = load_recipe(recipe)
        assert loaded.adapter
        assert (loaded.adapter.scaling, loaded.adapter.alpha, loaded.defaults) == ("weights", alpha, version)
    few = load_recipe(SECOND / "recipe.yaml", ["adapter.ratio=0.01"]).adapter
    own = load_recipe(SECOND / "recipe.yaml", ["adapter.scaling=weights", "adapter.alpha=1"]).adapter
    bits = load_recipe(SECOND / "recipe.yaml", ["adapter.bits=3"]).adapter
    spectral = load_recipe(SECOND / "recipe.yaml", ["adapter.projection=dct"]).adapter
    assert [section and section.alpha for section in (few, own, bits, spectral)] == [6.3, 1, None, None]


@pytest.mark.parametrize("knobs", ["alpha: 4", "scaling: rslora", "scaling: alpha, alpha: 1"])
def test_text_to_image_has_no_default_rate_for_an_adapter_that_sets_its_scale(knobs: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        ADAPTED.replace("method: lorta", f"method: lora, {knobs}").replace("glyphs_vit", "glyphs_text")
        + "task: text-to-image\n"
    )
    with pytest.raises(UsageError, match=r"leave out adapter\.alpha and scaling, with which 0\.03 fits"):
        load_recipe(recipe)
    for words in ("train.optimizer.lr=find", "adapter.scaling=weights", "task=classification"):
        load_recipe(recipe, [words])


@pytest.mark.parametrize("file", ["recipe.yaml", "run/recipe.yaml"])
def test_a_file_has_the_newest_defaults_and_a_runs_own_recipe_its_own(file: str) -> None:
    recipe = load_recipe(OLD / file)
    assert recipe.adapter
    assert recipe.train.scheduler
    expected = ("weights", "OneCycleLR", NEWEST) if file == "recipe.yaml" else (None, "constant", None)
    assert (recipe.adapter.scaling, recipe.train.scheduler.name, recipe.defaults) == expected


def made(tmp_path: Path, text: str, *overrides: str) -> dict[str, object]:
    (tmp_path / "own.yaml").write_text(text)
    return load_recipe(tmp_path / "own.yaml", overrides).to_dict()


def test_a_recipe_needs_no_rate_for_an_adapter(tmp_path: Path) -> None:
    recipe = made(tmp_path, ADAPTED)
    assert recipe["defaults"] == NEWEST
    assert recipe["train"]["optimizer"] == {"name": "AdamW", "lr": RATE}  # type: ignore[index]
    assert recipe["train"]["scheduler"] == {"name": "OneCycleLR", "warmup": 0, "pct_start": 0.1}  # type: ignore[index]
    assert recipe_from_dict(recipe, "a run").to_dict() == recipe


@pytest.mark.parametrize(("bits", "rate"), [(1, 0.1), (8, 0.1), (16, RATE)])
def test_numbers_of_a_few_bits_have_a_rate_of_their_own(tmp_path: Path, bits: int, rate: float) -> None:
    recipe = made(tmp_path, ADAPTED, f"adapter.bits={bits}")
    assert recipe["train"]["optimizer"]["lr"] == rate  # type: ignore[index]


def test_the_version_can_be_asked_for(tmp_path: Path) -> None:
    recipe = made(tmp_path, ADAPTED, "defaults=1", "train.optimizer.lr=0.1")
    assert "scaling" not in recipe["adapter"]  # type: ignore[operator]
    assert recipe["train"]["scheduler"]["name"] == "constant"  # type: ignore[index]


@pytest.mark.parametrize("knob", ["alpha=4", "scaling=rslora", "init=lora", "method=lora_xs", "method=unilora"])
def test_an_explicit_scale_is_left_alone(tmp_path: Path, knob: str) -> None:
    assert made(tmp_path, ADAPTED, f"adapter.{knob}")["adapter"].get("scaling") != "weights"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_only_adamw_has_a_default_rate(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"missing, expected a number ≥ 0.*{name} has no default"):
        made(tmp_path, ADAPTED, f"train.optimizer.name={name}")


def test_sgd_keeps_the_plain_scale(tmp_path: Path) -> None:
    recipe = made(tmp_path, ADAPTED, "train.optimizer={name: SGD, lr: 0.05}")
    assert "scaling" not in recipe["adapter"]  # type: ignore[operator]


def test_the_whole_base_has_no_default_rate(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the whole base has no default"):
        made(tmp_path, ADAPTED.replace("adapter: {method: lorta}\n", ""))


def test_the_file_of_a_run_holds_the_scale_as_a_plain_alpha(cli: Cli, tmp_path: Path) -> None:
    from superlora_cli.adapter.store import load

    (tmp_path / "own.yaml").write_text(ADAPTED)
    assert cli("train", "own.yaml", "--quiet").code == 0
    stored = load(tmp_path / "runs/own/adapter.safetensors")
    assert stored.config.scaling == "alpha"
    assert stored.config.alpha is not None
    assert 0.01 < stored.config.alpha * math.sqrt(4) / 2 < 0.2  # the size of the weights
    assert stored.recipe["adapter"]["scaling"] == "weights"
