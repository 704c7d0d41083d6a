"""`superlora count-params`: what it prints, what it refuses, and that it starts without torch."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

from superlora_cli.adapter.attach import attach, detach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.counting import count
from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.analysis.budget import FAMILIES
from superlora_cli.cli.app import main
from superlora_cli.models.catalogue import find
from superlora_cli.models.embedded import EMBEDDED
from superlora_cli.models.targets import expand

RECIPE = """\
model: {name: vit_base_patch16_224.orig_in21k, head: new}
data: {name: torch/cifar100}
adapter: {method: lorta, targets: [q, v], groups: 1, order: 3, rank: 4}
train: {steps: 10, optimizer: {name: SGD, lr: 0.05}}
"""
HEAVY = {"torch", "timm", "torchvision", "numpy", "matplotlib", "sklearn"}


class Ran:
    """Runs `superlora count-params` in this process; the parts of what came out."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["superlora", "count-params", *words])
        with pytest.raises(SystemExit) as exit:
            main()
        return (int(exit.value.code or 0), *self.capsys.readouterr())

    def json(self, *words: str) -> Any:
        code, out, _ = self(*words, "--json")
        assert code == 0
        return json.loads(out)

    def error(self, *words: str) -> str:
        code, out, err = self(*words)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        return err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ran:
    monkeypatch.setenv("COLUMNS", "160")
    return Ran(capsys, monkeypatch)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_bare_it_shows_the_count_and_its_breakdown(run: Ran) -> None:
    code, out, _ = run("--groups", "4", "--order", "5")
    assert code == 0
    assert "5,776 = 4 × (5·21·4 + 4⁵)" in out
    assert "24 weights, 14,155,776 elements" in out


def test_json_has_the_documented_keys(run: Ran) -> None:
    assert run.json("--groups", "4", "--order", "5") == {
        "adapter": 5776,
        "core": 4096,
        "bytes": 23_104,
        "head": 0,
        "base": 86_567_656,
        "targets": {"weights": 24, "elements": 14_155_776},
        "units": [{"count": 4, "shape": [21, 21, 21, 21, 21], "params": 1444}],
        "stored_bytes": 24_480,
        "lora_same_rank": 147_456,
    }


def test_every_option_reaches_its_knob(run: Ran) -> None:
    unet = ("--model", "cfg_unet")
    assert run.json(*unet, "--groups", "4", "--rank", "24", "--align", "64")["adapter"] == 73_728
    kronecker = ("--method", "lonkr", "--splits", "2", "--split-dim", "6", "--terms", "2", "--rank", "10")
    assert run.json(*unet, *kronecker)["adapter"] == 5_112
    assert run.json(*unet, *kronecker, "--left", "lowrank", "--rank", "2")["adapter"] == 2 * (2 * 6 * 2 + 2 * 126 * 2)
    ratio = ("--order", "5", "--rank", "1", "--projection", "linear_v2", "--ratio", "0.01")
    assert run.json(*unet, *ratio)["adapter"] == 31
    assert run.json("--method", "lotr", "--rank", "full,4,4")["adapter"] == 24 * 16 + 2 * 768 * 4
    assert run.json("--order", "3", "--core", "diagonal", "--rank", "2")["core"] == 2
    loha = ("--groups", "weight", "--fold", "none", "--splits", "2", "--combine", "hadamard", "--rank", "1")
    assert run.json(*loha)["adapter"] == 24 * 2 * 2 * 768
    assert run.json("--targets", "mlp, o", "--groups", "layer")["targets"]["weights"] == 36


def test_a_recipe_gives_model_targets_adapter_and_head(run: Ran, recipe: Path) -> None:
    result = run.json(str(recipe))
    assert (result["adapter"], result["head"], result["base"]) == (2_968, 100 * 768 + 100, 85_798_656)
    assert run.json(str(recipe), "adapter.rank=2", "data.num_classes=5")["head"] == 5 * 769
    assert run.json(str(recipe), "--order", "5")["adapter"] == 5 * 27 * 4 + 4**5
    assert run.json(str(recipe), "model.head=frozen")["head"] == 0
    assert run.json(str(recipe), "--model", "vit_tiny_patch16_224")["base"] == 5_717_416


def test_a_head_of_unknown_size_is_said_to_be_unknown(run: Ran, recipe: Path) -> None:
    code, out, err = run(str(recipe), "data.name=my/folder", "--json")
    assert (code, json.loads(out)["head"]) == (0, None)
    assert "data.num_classes" in err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--rank", "x"), ("--rank: 'x' is not a rank",)),
        (("--order", "5", "--rank", "40"), ("--rank: rank 40 is larger than a side of 27", "at most 27")),
        (("--core", "dens"), ("--core: unknown core 'dens'", "did you mean 'dense'?")),
        (("--method", "lorat"), ("--method: unknown method 'lorat'", "'lora'")),
        (("--groups", "layers"), ("--groups: groups is 'layers'", "weight, layer or none")),
        (("--targets", "qq"), ("--targets: target 'qq' matches no weight", "short names are q, k, v")),
        (("--targets", "blocks.*.attn.qv"), ("--targets: target 'blocks.*.attn.qv'", ".attn.qkv")),
        (("--ratio", "0.5"), ("--ratio: ratio 0.5 with projection identity",)),
        (("adapter.rank=2",), ("KEY=VALUE overrides a recipe",)),
        (("nowhere.yaml",), ("nowhere.yaml: no such file or shipped recipe",)),
        (("--budget", "5", "--order", "5"), ("--budget: no setting has at most 5 parameters", "has 56")),
        (("--freeze", "A3"), ("--freeze: unknown factor 'A3'", "'A2'")),
        (("--inner", "onehot", "--dim", "0"), ("--dim: dim is 0",)),
        (("--inner", "hot"), ("--inner: unknown projection 'hot'", "onehot")),
        (("--method", "tinylora", "--dim", "9"), ("--dim: 9 numbers for 4 entries", "at most 4")),
        (("--method", "lora", "--freeze", "planes"), ("--freeze: nothing is left to train",)),
        (("--frozen", "svd"), ("--frozen: frozen svd, but no plane factor is frozen",)),
        (("--diagonals", "3"), ("--diagonals: mode 3 has no factor",)),
        (("--plot", "figure.txt"), ("figure.txt", "ends in .svg")),
    ],
)
def test_an_error_is_one_line_that_names_the_option(run: Ran, words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    message = run.error(*words)
    for part in parts:
        assert part in message


def test_an_error_in_a_recipe_names_its_key(run: Ran, recipe: Path) -> None:
    assert f"{recipe}: adapter.rank: rank 300" in run.error(str(recipe), "adapter.rank=300")
    assert "--rank: rank 300" in run.error(str(recipe), "--rank", "300")


def test_a_recipe_without_adapter_has_none_to_count(run: Ran, recipe: Path) -> None:
    recipe.write_text("".join(line for line in RECIPE.splitlines(True) if not line.startswith("adapter")))
    assert "85,798,656 parameters are trained" in run.error(str(recipe))
    assert run.json(str(recipe), "--method", "lora")["adapter"] == 147_456


def test_explain_accounts_for_every_parameter(run: Ran) -> None:
    for words in ((), ("--method", "lonkr"), ("--method", "lokr"), ("--method", "loha"), ("--method", "dense"),
                  ("--method", "lotr"), ("--model", "cfg_unet", "--groups", "layer", "--fold", "none")):  # fmt: skip
        result = run.json(*words, "--explain")
        tensors = result["explain"]["tensors"]
        assert sum(tensor["params"] for tensor in tensors) == result["adapter"]
        assert all(math.prod(tensor["shape"]) == tensor["params"] and tensor["what"] for tensor in tensors)
    code, out, _ = run("--groups", "4", "--order", "5", "--explain")
    assert code == 0
    assert "⌈14,155,776 / 4⌉ = 3,538,944" in out
    assert "20⁵ < 3,538,944 ≤ 21⁵" in out
    assert "dense core C" in out


@pytest.mark.parametrize(("model", "budget"), [("cfg_unet", 1_000), ("vit_base_patch16_224", 50_000)])
def test_a_budget_is_met_from_below_by_settings_that_can_be_counted(run: Ran, model: str, budget: int) -> None:
    result = run.json("--model", model, "--budget", str(budget))
    assert result["budget"] == budget
    assert len(result["offers"]) >= 5
    for offer in result["offers"]:
        assert offer["name"] in FAMILIES
        assert offer["adapter"] <= budget
        counted = run.json("--model", model, *offer["flags"].split())
        assert (counted["adapter"], counted["stored_bytes"]) == (offer["adapter"], offer["stored_bytes"])


@pytest.mark.parametrize(
    ("model", "budget"),
    [("vit_base_patch16_224", 1_000), ("vit_base_patch16_224", 30_000), ("glyphs_vit", 40), ("glyphs_vit", 1_000),
     ("cfg_unet", 40)],
)  # fmt: skip
def test_a_budget_s_recommendation_can_be_trained_and_fits(run: Ran, model: str, budget: int) -> None:
    found = run.json("--model", model, "--budget", str(budget))["recommended"]
    assert found["params"] <= budget
    knobs = dict(found["adapter"])
    base = find(model)
    config = AdapterConfig.from_knobs(knobs.pop("method", None), **knobs)
    assert count(config, base.targets(("q", "v"))).adapter == found["params"]
    assert found["lr"] > 0
    code, out, _ = run("--model", model, "--budget", str(budget))
    assert code == 0
    (section,) = re.findall(r"recommended, with [0-9,]+ parameters: (adapter: .*)", out)
    assert yaml.safe_load(section) == {"adapter": found["adapter"]}


@pytest.mark.parametrize(("bits", "rate"), [(4, 0.1), (16, 0.03)])
def test_a_budget_of_bytes_is_recommended_with_the_default_rate(run: Ran, bits: int, rate: float) -> None:
    found = run.json("--model", "glyphs_vit", "--bytes", "100", "--bits", str(bits))["recommended"]
    assert (found["params"], found["lr"]) == (8 * 100 // bits, rate)


def test_where_something_is_asked_for_or_everything_fits_nothing_is_recommended(run: Ran) -> None:
    assert run.json("--budget", "80000", "--method", "lora")["recommended"] is None
    assert run.json("--model", "glyphs_vit", "--budget", "49152")["recommended"] is None
    assert "recommended" not in run("--model", "glyphs_vit", "--budget", "49152")[1]


def test_a_budget_s_rank_is_the_highest_that_fits(run: Ran) -> None:
    (offer,) = run.json("--budget", "80000", "--method", "lora")["offers"]
    assert offer["flags"] == "--method lora --rank 2"  # 36,864 parameters a rank
    assert {offer["name"] for offer in run.json("--budget", "900", "--order", "5")["offers"]} == {
        *("LoRTA 5D", "LoRTA 5D projected"),
    }


def test_dense_is_offered_where_it_fits_and_nothing_larger(run: Ran) -> None:
    offers = run.json("--model", "glyphs_vit", "--budget", "1000000")["offers"]
    assert offers[0]["adapter"] == 12 * 64 * 64
    assert "dense" in {offer["name"] for offer in offers}


def test_the_file_has_the_size_that_was_promised(run: Ran) -> None:
    shipped = EMBEDDED["glyphs_vit"]
    model = timm.create_model(shipped.architecture, **shipped.arguments, num_classes=shipped.classes)
    for words in (("--order", "5", "--rank", "1"), ("--method", "lonkr"), ("--groups", "weight", "--rank", "3")):
        knobs: dict[str, Any] = {
            key.removeprefix("--"): value if value in ("lonkr", "weight") else int(value)
            for key, value in zip(words[::2], words[1::2], strict=True)
        }
        config = AdapterConfig.from_knobs(knobs.pop("method", None), **knobs)
        adapter = attach(model, expand(model, ["q", "v"]), config)
        base = {"name": "glyphs_vit", "sha256": "a" * 64, "dtype": "float32"}
        stored = StoredAdapter(config, ("q", "v"), "b" * 64, base, {}, {}, dict(adapter.factors.items()))
        assert run.json("--model", "glyphs_vit", *words)["stored_bytes"] == len(stored.to_bytes())
        detach(model)


@pytest.mark.slow
def test_plot_draws_fig_2_and_the_same_bytes_again(run: Ran, tmp_path: Path) -> None:
    first, second = tmp_path / "one.svg", tmp_path / "two.svg"
    code, out, err = run("--plot", str(first))
    assert (code, "30,104" in out, f"wrote {first}" in err) == (0, True, True)
    run("--plot", str(second), "--model", "vit_base_patch16_224")
    assert first.read_bytes() == second.read_bytes()
    assert b"<svg" in first.read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("count-params", "--help"),
        ("count-params", "--groups", "4", "--order", "5", "--explain", "--json"),
        ("count-params", "--model", "cfg_unet", "--budget", "1000"),
    ],
)
def test_it_starts_without_heavy_imports(words: tuple[str, ...]) -> None:
    code = (
        "import sys, atexit; from superlora_cli.cli.app import main;"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert not HEAVY & set(ran.stderr.split())
