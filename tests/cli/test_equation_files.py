"""Adapters whose factors are made of few numbers, frozen or the base's own go wherever others go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import superlora_cli
from superlora_cli.opening.shapes_only import read_adapter
from tests.conftest import Cli
from tests.makers import BASE, deltas_of, relative, write_adapter, write_base
from tests.test_api import X, moved, vit

RECIPES = ("digits_unilora", "digits_vera", "digits_lora_xs")
ALL = pytest.mark.parametrize("recipe", RECIPES)
NEAR = {"digits_unilora": 1.0, "digits_vera": 0.5, "digits_lora_xs": 1e-4}  # products of θ or D have near solutions
METHODS = pytest.mark.parametrize(
    "method", ["unilora", "vera", "randlora", "lora_xs", "tinylora", "fourierft", "hira", "ia3", "oft", "dora"]
)


@METHODS
def test_saved_and_loaded_from_python(method: str, tmp_path: Path) -> None:
    model, other, file = vit(), vit(), tmp_path / "a.safetensors"
    adapter = moved(superlora_cli.attach(model, ["q", "v"], method), 3)
    superlora_cli.save(model, file)
    again = superlora_cli.load(other, file, name="again")
    assert again.plan.params == adapter.plan.params
    assert torch.equal(other(X), model(X))
    assert not torch.equal(other(X), vit()(X))


def test_the_base_of_frozen_factors_is_that_below_other_adapters() -> None:
    model, alone = vit(), vit()
    moved(superlora_cli.attach(model, ["q", "v"], "lora", name="first"), 1)
    outputs = []
    for each in (model, alone):
        moved(superlora_cli.attach(each, ["q", "v"], "lora_xs", name="second"), 2)
        outputs.append(each(X))
    assert torch.equal(*outputs)


@ALL
def test_merged_with_weights_in_a_file(recipe: str, cli: Cli) -> None:
    file = write_adapter("a.safetensors", recipe)
    done = cli("merge", file, "--base", BASE, "--out", "merged.safetensors", "--json").json()
    assert done["verified"]
    merged, base = load_file("merged.safetensors"), load_file(BASE)
    deltas = deltas_of(file)
    for target in read_adapter(file).targets:
        name = f"{target.module}.weight"
        wanted = base[name][target.start : target.stop] + deltas[target.name]
        torch.testing.assert_close(merged[name][target.start : target.stop], wanted)


@ALL
def test_exported_combined_and_measured(recipe: str, cli: Cli) -> None:
    file = write_adapter("a.safetensors", recipe)
    done = cli("export", file, "--to", "peft-lora", "--energy", "1", "--out", "peft", "--json").json()
    assert done["error"] < 1e-5
    assert json.loads(Path("peft/adapter_config.json").read_text())["peft_type"] == "LORA"
    lora = write_adapter("lora.safetensors", "digits_lora")
    assert cli("combine", file, lora, "--energy", "1", "--out", "mean.safetensors").code == 0
    one, two = deltas_of(file), deltas_of(lora)
    assert relative(deltas_of("mean.safetensors"), {name: (one[name] + two[name]) / 2 for name in one}) < 1e-5
    norms = cli("inspect", file, "--norms", "--json").json()["norms"]
    assert norms["norm"] == pytest.approx(sum(delta.square().sum() for delta in one.values()).item() ** 0.5)
    assert norms["relative"] > 0


def test_without_its_base_an_adapter_on_singular_vectors_is_nothing(cli: Cli) -> None:
    base = write_base("half.safetensors", torch.float32)
    file = write_adapter("a.safetensors", "digits_lora_xs", f"model.checkpoint={base}")
    base.unlink()
    for words in (("inspect", file, "--norms"), ("export", file, "--to", "delta", "--out", "delta.safetensors")):
        result = cli(*words)
        assert result.code == 2
        assert "a.safetensors: its ΔW depends on the base: " in result.err
        assert "half.safetensors" in result.err


@pytest.mark.slow
@ALL
def test_found_again_in_the_difference_of_two_checkpoints(recipe: str, cli: Cli) -> None:
    file = write_adapter("a.safetensors", recipe)
    assert cli("merge", file, "--out", "tuned.safetensors", "--no-verify").code == 0
    done = cli("extract", recipe, "--tuned", "tuned.safetensors", "--out", "found.safetensors", "--json").json()
    assert done["error"] < NEAR[recipe]
    assert relative(deltas_of("found.safetensors"), deltas_of(file)) == pytest.approx(done["error"], abs=1e-4)
    words = ("--method", "unilora", "--dim", "32", "--out", "own.safetensors", "--steps", "2", "--json")
    done = cli("extract", "--base", "glyphs_vit", "--tuned", "tuned.safetensors", *words).json()
    assert done["params"]["adapter"] == 32
