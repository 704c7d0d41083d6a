"""Adapters without factors: a head alone, biases, normalisation layers; and with factors, these beside them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import superlora_cli
from superlora_cli.adapter import store
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.analysis.trained import trained_params
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.models.parts import chosen, parts_of
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import load_recipe
from tests.conftest import run_cli
from tests.forking.commands import FORKED, Commands

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FEW = ("train.steps=4", "eval.every=4", "train.threads=1", "data.augment=none", "train.optimizer.lr=0.01")
TRAINED = {
    "probe": ("adapter={method: none}", "model.head=new"),
    "bitfit": ("adapter={method: bitfit}",),
    "lora and norms": ("adapter={method: lora, rank: 1, also: [norm]}", "model.head=new"),
}


def superlora(*words: str | Path, code: int = 0) -> dict[str, Any]:
    """What a command says under --json."""
    result = run_cli(*words, "--json")
    assert result.code == code, result.err or result.out
    return result.json()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run of each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in TRAINED.items():
        superlora("train", "quickstart", *words, *FEW, "--out", folder / name, "--quiet")
    return {name: folder / name for name in TRAINED}


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_trains_what_it_counts_and_nothing_else(name: str, runs: dict[str, Path]) -> None:
    recipe = load_recipe("quickstart", [*TRAINED[name], *FEW])
    params = json.loads((runs[name] / "run.json").read_text())["params"]
    assert params == trained_params(recipe) == superlora("train", "quickstart", *TRAINED[name], "--dry-run")["params"]
    counted = superlora("count-params", "quickstart", *TRAINED[name])
    assert (counted["adapter"], counted["head"]) == (params["adapter"], params["head"])
    built = build_for_training(recipe)
    trained = {key: tensor for key, tensor in built.model.named_parameters() if tensor.requires_grad}
    assert sum(tensor.numel() for tensor in trained.values()) == params["adapter"] + params["head"]
    stored = store.load(runs[name] / "adapter.safetensors")
    assert {*stored.factors, *stored.beside} == {key.removeprefix("superlora.factors.") for key in trained}
    inspected = superlora("inspect", runs[name])
    assert inspected["params"] == {"adapter": params["adapter"], "head": params["head"]}
    moved = [not torch.equal(tensor, built.model.get_parameter(key)) for key, tensor in stored.beside.items()]
    assert all(moved)


@pytest.mark.parametrize("name", TRAINED)
def test_counted_bytes_are_the_file_s_but_for_the_metrics(name: str, runs: dict[str, Path]) -> None:
    file = runs[name] / "adapter.safetensors"
    with safe_open(file, "pt") as opened:
        metrics = opened.metadata()["superlora.metrics"]
    counted = superlora("count-params", "quickstart", *TRAINED[name], *FEW)["stored_bytes"]
    assert abs(counted + len(json.dumps(metrics)) - len('"{}"') - file.stat().st_size) < 8  # the header is padded


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_evaluated_merged_and_loaded_it_is_the_trained_model(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    metrics = json.loads((runs[name] / "eval.json").read_text())["metrics"]
    assert superlora("eval", runs[name])["metrics"] == metrics
    merged = superlora("merge", runs[name], "--out", tmp_path / "merged.safetensors")
    assert merged["verified"]
    state, stored = load_file(tmp_path / "merged.safetensors"), store.load(runs[name] / "adapter.safetensors")
    assert all(torch.equal(state[key], tensor) for key, tensor in stored.beside.items())
    model = build_for_training(load_recipe("quickstart", [*TRAINED[name], "adapter=null"])).model.eval()
    plain = model(IMAGES)
    superlora_cli.load(model, runs[name])
    adapted = model(IMAGES)
    superlora_cli.activate(model, None)
    assert torch.equal(model(IMAGES), plain)
    superlora_cli.activate(model, "default")
    assert torch.equal(model(IMAGES), adapted)
    superlora_cli.save(model, tmp_path / "again.safetensors")
    again = store.load(tmp_path / "again.safetensors")
    assert (again.base["sha256"], again.targets_digest) == (stored.base["sha256"], stored.targets_digest)
    superlora_cli.detach(model, merge=True)
    torch.testing.assert_close(model(IMAGES), adapted)
    assert not torch.equal(adapted, plain)
    model.load_state_dict(state)
    torch.testing.assert_close(model(IMAGES), adapted)


@pytest.mark.parametrize("name", ["probe", "bitfit"])
def test_another_base_is_refused(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from superlora_cli.models.embedded import ASSETS

    state = load_file(ASSETS / "glyphs_vit.safetensors")
    state["blocks.3.mlp.fc1.weight"][0, 0] += 1
    save_file(state, tmp_path / "other.safetensors")
    out = ("--out", tmp_path / "merged.safetensors", "--base")
    error = superlora("merge", runs[name], *out, tmp_path / "other.safetensors", code=3)["error"]
    assert "the first weight that differs is blocks.3.mlp.fc1" in error["message"]
    superlora("merge", runs[name], *out, ASSETS / "glyphs_vit.safetensors")
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=64, depth=6, num_heads=4,
                              num_classes=10)  # fmt: skip
    with pytest.raises(MismatchError, match="not the base"):
        superlora_cli.load(model, runs[name])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "probe", "--to", "delta"), "no weight is adapted"),
        (("export", "lora and norms", "--to", "peft-lora"), "26 tensors of the base were trained directly"),
        (("export", "bitfit", "--to", "diffusers-lora"), "were trained directly"),
        (("combine", "probe", "probe"), "no weight is adapted"),
        (("merge", "probe", "--unmerge", "--base", "merged"), "the adapter replaces the head of the base"),
        (("merge", "bitfit", "--unmerge", "--base", "merged"), "the adapter replaces 38 tensors of the base"),
    ],
)
def test_what_has_no_place_for_it_says_so(
    words: tuple[str, ...], said: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    merged = tmp_path / "merged.safetensors"
    if "merged" in words:
        superlora("merge", runs[words[1]], "--out", merged)
    asked = [str(runs.get(word, merged if word == "merged" else word)) for word in words]
    assert said in superlora(*asked, "--out", tmp_path / "out.safetensors", code=2)["error"]["message"]


@pytest.mark.slow
def test_a_run_of_a_probe_is_exported_for_timm_and_reported(runs: dict[str, Path], tmp_path: Path) -> None:
    assert superlora("export", runs["probe"], "--to", "timm", "--out", tmp_path / "timm.safetensors")["verified"]
    page = tmp_path / "report.html"
    told = superlora("report", *runs.values(), "--out", page, "--against", runs["lora and norms"])
    (section,) = told["sections"]
    assert {row["method"]: row["params"] for row in section["rows"]} == {
        "head alone": 0, "BitFit": 4352, "LoRA, norms": 1536 + 26 * 64
    }  # fmt: skip
    assert "head alone" in page.read_text()
    assert {best["order"] for best in section["budgets"]} == {None, 2}


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    words = ("quickstart", "adapter={method: lora, rank: 1, also: [bias]}", *FEW, "train.checkpoint_every=2", "--quiet")
    superlora("train", *words, "--out", tmp_path / "run")
    file = tmp_path / "run" / "adapter.safetensors"
    whole = file.read_bytes()
    file.unlink()
    (tmp_path / "run" / "checkpoints" / "step-000004" / "COMPLETE").unlink()  # as if it had been killed before
    superlora("train", *words, "--resume", tmp_path / "run")
    assert file.read_bytes() == whole


@pytest.mark.slow
def test_a_sweep_has_the_probe_beside_the_adapters(tmp_path: Path, commands: Commands) -> None:
    file = tmp_path / "few.yaml"
    file.write_text(
        "recipe: digits_lora\nset: {train.steps: 2, eval.every: 2, model.head: new, data.augment: none}\n"
        "grid: {adapter.method: [none, bitfit, lora], adapter.rank: [1]}\n"
    )
    commands.right("sweep", file, "--out", "sweep", "--workers", "1", "--quiet", cwd=tmp_path, setup=FORKED)
    lines = (tmp_path / "sweep" / "results.csv").read_text().splitlines()
    head = lines[0].split(",")
    at = [head.index(name) for name in ("adapter.method", "parameters", "head")]
    assert [[line.split(",")[i] for i in at] for line in lines[1:]] == [
        ["none", "0", "650"], ["bitfit", "4352", "650"], ["lora", "1536", "650"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adapter={method: none}"], "nothing would be trained"),
        (["adapter={method: bitfit, also: []}"], "nothing would be trained"),
        (["adapter={method: none, groups: 4}"], "groups 4 with method none"),
        (["adapter=none"], "{method: none} trains only the head; leave adapter out to train the whole base"),
        (["adapter.also=[biases]"], "expected 'bias' or 'norm', got 'biases' (did you mean 'bias'?)"),
        (["adapter.also=[bias,bias]"], "also is ['bias', 'bias']"),
    ],
)
def test_a_recipe_that_is_none_says_why(words: list[str], said: str) -> None:
    for command in (["validate", "quickstart"], ["train", "quickstart", "--dry-run"], ["count-params", "quickstart"]):
        error = superlora(*command, *words, code=2)["error"]
        assert said in f"{error['message']} ({error['hint']})", error


def test_the_knobs_of_delta_mean_nothing_without_one() -> None:
    config = AdapterConfig.from_knobs("none", rank=3, order=5, freeze=["core"], projection="linear", seed=7)
    assert config == AdapterConfig(groups="none", seed=7)
    assert AdapterConfig.from_json(config.to_json()) == config
    assert "also" not in AdapterConfig.from_knobs("lora").to_json()
    assert [AdapterConfig.from_knobs(name).format_version for name in ("lora", "none", "bitfit")] == [*"122"]


class Small(nn.Module):
    """Biases, normalisation layers of four makes, and what is called like them and is not."""

    def __init__(self) -> None:
        super().__init__()
        own = type("ScaleNorm", (nn.Module,), {})()
        own.scale = nn.Parameter(torch.ones(1))
        self.conv, self.batch = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.group, self.rms, self.own = nn.GroupNorm(2, 4), nn.RMSNorm(4), own
        self.q_bias, self.relative_position_bias_table = (nn.Parameter(torch.zeros(4)) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.rms(self.group(self.batch(self.conv(x))).mean((2, 3)) + self.q_bias))
        return found


def test_biases_and_normalisation_layers_are_found_by_what_they_are() -> None:
    parts = parts_of(Small())
    assert list(chosen(parts, ["bias"])) == ["q_bias", "batch.bias", "group.bias", "head.bias"]
    norms = ["batch.weight", "batch.bias", "group.weight", "group.bias", "rms.weight", "own.scale"]
    assert list(chosen(parts, ["norm"])) == norms
    assert len(chosen(parts, ["norm", "bias"], without=["head.bias"])) == 7
    with pytest.raises(UsageError, match="the base has no norm to train"):
        chosen({}, ["norm"])


def test_adapters_on_one_model_have_biases_of_their_own(tmp_path: Path) -> None:
    model = Small().eval()
    base = copy.deepcopy(model.state_dict())
    superlora_cli.attach(model, method="bitfit", head="head", name="one")
    superlora_cli.attach(model, method="none", also=["norm"], name="two")
    names = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {"batch.weight", "batch.bias", "group.weight", "group.bias", "rms.weight", "own.scale"}
    x, outputs = torch.randn(2, 3, 4, 4), {}
    for name in ("one", "two"):
        superlora_cli.activate(model, name)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(1 if name == "one" else 2)
        outputs[name] = model(x)
        superlora_cli.save(model, tmp_path / f"{name}.safetensors")
    superlora_cli.save(model, tmp_path / "while-two.safetensors", name="one")
    assert (tmp_path / "while-two.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()
    superlora_cli.detach(model)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in base.items())
    for name, output in outputs.items():
        superlora_cli.load(model, tmp_path / f"{name}.safetensors", name=name)
        assert torch.equal(model(x), output)


def test_from_python_something_has_to_be_trained() -> None:
    with pytest.raises(UsageError, match="nothing would be trained"):
        superlora_cli.attach(Small(), method="none")
