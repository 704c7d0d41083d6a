"""An adapter is found again in the difference of two checkpoints."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from superlora_cli.models.embedded import ASSETS
from tests.conftest import Cli, contents, run_cli
from tests.makers import BASE, deltas_of, relative, write_adapter, write_base

QUICK = ("--steps", "20")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base with a LoRA of rank 4 merged in, beside its adapter; read only."""
    folder = tmp_path_factory.mktemp("merged")
    with contextlib.chdir(folder):
        write_adapter("lora.safetensors", "digits_lora", scale=0.5)
        assert run_cli("merge", "lora.safetensors", "--out", "tuned.safetensors", "--no-verify").code == 0
    return folder


@pytest.fixture
def tuned(merged: Path, cli: Cli) -> Path:
    """A copy of the two in the test's own folder."""
    shutil.copytree(merged, ".", dirs_exist_ok=True)
    return Path("tuned.safetensors")


def test_a_merged_lora_is_found_again(tuned: Path, cli: Cli) -> None:
    words = ("--base", "glyphs_vit", "--tuned", tuned, "--method", "lora", "--rank", "4", "--out", "found.safetensors")
    done = cli("extract", *words, "--json").json()
    assert done["error"] < 1e-5
    assert done["elsewhere"] == []
    assert done["params"] == {"adapter": 6144, "head": 0}
    assert [row["name"] for row in done["weights"]][:2] == ["blocks.0.attn.qkv[0:64]", "blocks.0.attn.qkv[128:192]"]
    assert relative(deltas_of("found.safetensors"), deltas_of("lora.safetensors")) < 1e-5
    metrics = [cli("eval", file, "--json").json()["metrics"] for file in ("found.safetensors", "lora.safetensors")]
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], abs=1e-4)
    assert cli("merge", "found.safetensors", "--out", "again.safetensors", "--json").json()["verified"] is True
    found, wanted = load_file("again.safetensors"), load_file(tuned)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
    assert cli("inspect", "found.safetensors", "--json").json()["origin"]["error"] == done["error"]


@pytest.mark.parametrize("recipe", ["quickstart", "digits_lokr", "digits_lorta3d", "digits_linear_v2"])
def test_other_variants_are_found_again_by_their_recipe(recipe: str, cli: Cli) -> None:
    write_adapter("made.safetensors", recipe, scale=0.5)
    assert cli("merge", "made.safetensors", "--out", "tuned.safetensors", "--no-verify").code == 0
    done = cli("extract", recipe, "--tuned", "tuned.safetensors", "--out", "found.safetensors", "--json").json()
    assert done["error"] < 1e-4
    assert relative(deltas_of("found.safetensors"), deltas_of("made.safetensors")) < 1e-4


def test_fewer_parameters_miss_more_and_the_error_is_that_of_the_file(tuned: Path, cli: Cli) -> None:
    errors = []
    for rank in (1, 2, 3):
        words = ("--method", "lora", "--rank", str(rank), "--out", f"{rank}.safetensors", "--json")
        errors.append(cli("extract", "--base", "glyphs_vit", "--tuned", tuned, *words).json()["error"])
        found = relative(deltas_of(f"{rank}.safetensors"), deltas_of("lora.safetensors"))
        assert found == pytest.approx(errors[-1], rel=1e-3)
    assert errors == sorted(errors, reverse=True)


def shard(file: Path, folder: str) -> Path:
    """A file as a folder of two shards with an index."""
    Path(folder).mkdir()
    state, places = load_file(file), {}
    for number in range(2):
        part = {name: tensor for i, (name, tensor) in enumerate(sorted(state.items())) if i % 2 == number}
        save_file(part, Path(folder, f"model-{number}.safetensors"))
        places |= dict.fromkeys(part, f"model-{number}.safetensors")
    Path(folder, "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return Path(folder)


def test_checkpoints_may_be_folders_of_shards_and_need_no_architecture(tuned: Path, cli: Cli) -> None:
    words = ("--base", shard(BASE, "old"), "--tuned", shard(tuned, "new"), "--method", "lora", "--targets", "q,v")
    done = cli("extract", *words, "--out", "files.safetensors", "--json").json()
    assert done["error"] < 1e-5
    assert cli("inspect", "files.safetensors", "--json").json()["base"]["name"] == "old"
    refused = cli("eval", "files.safetensors")
    assert refused.code == 2
    assert "its base cannot be built" in refused.message
    assert cli("merge", "files.safetensors", "--base", BASE, "--out", "merged.safetensors").code == 0
    found, wanted = load_file("merged.safetensors"), load_file(tuned)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
    named = ("--model", "glyphs_vit", "--base", BASE, "--tuned", tuned, "--method", "lora")
    assert cli("extract", *named, "--out", "named.safetensors").code == 0
    assert cli("eval", "named.safetensors").code == 0
    digests = [cli("inspect", f, "--json").json()["base"]["sha256"] for f in ("named.safetensors", "lora.safetensors")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_checkpoints_are_found_to_their_rounding(dtype: torch.dtype, bound: float, cli: Cli) -> None:
    base = write_base("half.safetensors", dtype)
    write_adapter("lora.safetensors", "digits_lora", f"model.checkpoint={base}", scale=0.5)
    assert cli("merge", "lora.safetensors", "--out", "tuned.safetensors", "--no-verify").code == 0
    words = ("--tuned", "tuned.safetensors", "--out", "found.safetensors", "--json")
    done = cli("extract", "digits_lora", f"model.checkpoint={base}", *words).json()
    assert 0 < done["error"] < bound
    assert relative(deltas_of("found.safetensors"), deltas_of("lora.safetensors")) < bound
    assert cli("inspect", "found.safetensors", "--json").json()["base"]["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.slow
def test_a_tuned_head_is_stored_and_other_changes_are_named(cli: Cli) -> None:
    write_adapter("lora.safetensors", "digits_lora", "model.head=new", scale=0.5)
    assert cli("merge", "lora.safetensors", "--out", "tuned.safetensors", "--no-verify").code == 0
    state = load_file("tuned.safetensors")
    state["norm.weight"] += 1
    state["blocks.2.attn.qkv.weight"][70] += 1  # k
    save_file(state, "tuned.safetensors")
    words = ("--base", "glyphs_vit", "--tuned", "tuned.safetensors", "--method", "lora", "--out", "found.safetensors")
    done = cli("extract", *words, "--json").json()
    assert done["elsewhere"] == ["blocks.2.attn.qkv.weight", "norm.weight"]
    assert done["params"]["head"] == 650
    assert torch.equal(load_file("found.safetensors")["head.head.weight"], state["head.weight"])
    scores = [cli("eval", file, "--json").json()["metrics"] for file in ("found.safetensors", "lora.safetensors")]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], abs=1e-4)
    assert "2 other changed tensors" in cli("extract", *words, "--force").out


def test_an_extraction_is_repeatable(tuned: Path, cli: Cli) -> None:
    words = ("--base", "glyphs_vit", "--tuned", tuned, "--method", "lorta", "--rank", "2", *QUICK)
    for name in ("one", "two"):
        assert cli("extract", *words, "--out", name).code == 0
    assert Path("one").read_bytes() == Path("two").read_bytes()


@pytest.fixture
def pipelines(cli: Cli) -> Path:
    """Folders: the shipped pipeline, `base`, and with an adapter of U-Net and text encoder merged into it, `tuned`."""
    shutil.copytree(ASSETS / "glyphs_text", "base")
    Path("r.yaml").write_text(
        'task: text-to-image\nmodel: {name: "diffusers:base"}\ndata: {name: nowhere}\n'
        "adapter: {method: lora, rank: 2, targets: [q, 'text_encoder.*.q_proj']}\ntrain: {steps: 1}\n"
    )
    write_adapter("lora.safetensors", "r.yaml", scale=0.5)
    assert cli("merge", "lora.safetensors", "--out", "tuned", "--no-verify").code == 0
    return Path("tuned")


UNET = ("--method", "lora", "--rank", "2", "--targets", "q")
BOTH = (*UNET[:-1], "q,text_encoder.*.q_proj")


@pytest.mark.slow
def test_a_pipelines_adapter_is_found_again_in_all_forms(pipelines: Path, cli: Cli) -> None:
    whole = deltas_of("lora.safetensors")
    unet = {name: delta for name, delta in whole.items() if not name.startswith("text_encoder")}
    for words, wanted in (
        (("r.yaml", "--tuned", "tuned"), whole),
        (("--base", "base", "--tuned", "tuned", *BOTH), whole),
        (("--base", "diffusers:base", "--tuned", "tuned", *UNET), unet),
        (("--base", "./base/unet", "--tuned", "tuned/unet", *UNET), unet),
        (("--base", "glyphs_text", "--tuned", "tuned/unet", *UNET), unet),
        (("r.yaml", "adapter.targets=[q]", "--tuned", "tuned/unet/diffusion_pytorch_model.safetensors"), unet),
    ):
        done = cli("extract", *words, "--out", "found.safetensors", "--force", "--json")
        assert done.code == 0, done.err
        assert relative(deltas_of("found.safetensors"), wanted) < 1e-4, words
        parts = {name.partition(".")[0] for name in done.json()["elsewhere"]}
        assert parts == ({"text_encoder"} if wanted is unet and "tuned" in words else set()), words
        assert cli("inspect", "found.safetensors", "--json").json()["base"]["sha256"]
    assert cli("merge", "lora.safetensors", "--scale", "0.5", "--out", "half").code == 0  # it is verified
    assert cli("extract", "r.yaml", "--tuned", "half", "--out", "half.safetensors").code == 0
    assert relative(deltas_of("half.safetensors"), {name: 0.5 * delta for name, delta in whole.items()}) < 1e-4
    generate = ("generate", "found.safetensors", "--prompt", "a red seven", "--steps", "1", "--out", "images")
    assert cli(*generate).code == 0
    for words, code, said in (
        (("r.yaml", "--tuned", "tuned/unet"), 3, "has no text_encoder."),
        (("--base", next(Path("base/unet").glob("*.safetensors")), "--tuned", "tuned", *UNET), 2, "is a text-to-image"),
        (("--base", "glyphs_vit", "--tuned", "tuned", *UNET), 2, "is a text-to-image"),
    ):
        refused = cli("extract", *words, "--out", "new.safetensors")
        assert (refused.code, said in refused.message) == (code, True), refused.err
        assert not Path("new.safetensors").exists()


def test_a_name_with_a_prefix_is_no_path(tuned: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("hf-hub:nobody/none", "transformers:nobody/none"):
        refused = cli("extract", "--base", name, "--tuned", tuned, "--out", "new.safetensors")
        assert (refused.code, "no such file" in refused.message) == (2, False)


REFUSED = [
    (["--base", "glyphs_vit"], "--tuned: is missing"),
    (["--tuned", "tuned.safetensors"], "no base"),
    (["--base", "glyphs_vit", "--tuned", "none.safetensors"], "no such file"),
    (["--base", "none.safetensors", "--tuned", "tuned.safetensors"], "no such file"),
    (["--base", "glyphs_vitt", "--tuned", "tuned.safetensors"], "did you mean 'glyphs_vit'"),
    (["--base", "glyphs_vit", "--tuned", "tuned.safetensors", "--method", "lora", "--rank", "0"], "rank"),
    (["--base", "glyphs_vit", "--tuned", "tuned.safetensors", "--method", "lora", "--rank", "65"], "larger than"),
    (["--base", "glyphs_vit", "--tuned", "tuned.safetensors", "--method", "lara"], "did you mean 'lora'"),
    (["--base", "glyphs_vit", "--tuned", "tuned.safetensors", "--targets", "qq"], "matches no weight"),
    (["--base", "glyphs_vit", "--tuned", "tuned.safetensors", "--targets", "o"], "nothing to extract"),
    (["--base", "glyphs_vit", "--tuned", "tuned.safetensors", "--steps", "-1"], "--steps"),
    (["--base", "glyphs_vit", "--tuned", "tuned.safetensors", "--out", "tuned.safetensors"], "the file exists"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_extracted_is_refused_and_nothing_written(
    words: list[str], message: str, tuned: Path, cli: Cli
) -> None:
    before = contents(Path())
    result = cli("extract", *([] if "--out" in words else ["--out", "new.safetensors"]), *words)
    assert result.code == 2
    assert message in result.message
    assert contents(Path()) == before


def test_checkpoints_of_different_models_and_broken_ones_are_refused(tuned: Path, cli: Cli) -> None:
    state = load_file(tuned)
    name = "blocks.0.attn.qkv.weight"
    save_file({**state, name: state[name][:100].clone()}, "cut.safetensors")
    save_file({n: tensor for n, tensor in state.items() if n != name}, "part.safetensors")
    save_file({**state, name: state[name] * float("nan")}, "nan.safetensors")
    for file, code, message in (("cut", 3, "[100, 64]"), ("part", 3, "has no"), ("nan", 1, "not finite")):
        result = cli("extract", "--base", "glyphs_vit", "--tuned", f"{file}.safetensors", "--out", "new.safetensors")
        assert result.code == code
        assert message in result.message
        assert not Path("new.safetensors").exists()
