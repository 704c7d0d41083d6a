"""An adapter file alone is enough: evaluated and merged anywhere, and the merged weights are the base's plus ΔW."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from superlora_cli.data.digits import load_digits_split
from superlora_cli.data.splits import Look, evaluation_transform
from superlora_cli.models.embedded import ASSETS, EMBEDDED
from superlora_cli.opening.build import build_from_file
from superlora_cli.recipe.load import shipped_recipes
from tests.conftest import QUICK, Cli

BASE = ASSETS / "glyphs_vit.safetensors"
QKV = [f"blocks.{block}.attn.qkv.weight" for block in range(6)]  # (192, 64): 64 rows each of q, k and v


@pytest.fixture
def alone(adapter: Path, cli: Cli) -> Path:
    """Nothing but the adapter's file, under another name, in another folder."""
    return Path(shutil.copy(adapter, "mine.safetensors"))


@pytest.fixture
def merged(alone: Path, cli: Cli) -> Path:
    """The file with its base merged in."""
    assert cli("merge", alone, "--out", "merged.safetensors").code == 0
    return Path("merged.safetensors")


def timm_model(file: Path) -> nn.Module:
    """The file as a user loads it: timm is strict about missing and unexpected keys."""
    base = EMBEDDED["glyphs_vit"]
    model = timm.create_model(base.architecture, checkpoint_path=str(file), num_classes=base.classes, **base.arguments)
    missing, unexpected = model.load_state_dict(load_file(file), strict=False)
    assert not missing
    assert not unexpected
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """(500, 10): outputs on the whole test set."""
    images, _ = load_digits_split("test", 16)
    return torch.cat([model(batch) for batch in ((images / 255 - 0.5) / 0.5).split(100)])


def test_an_adapter_file_alone_gives_the_runs_metrics(trained: Path, alone: Path, cli: Cli) -> None:
    found = cli("eval", alone, "--json").json()
    assert found.keys() >= {"task", "metrics", "n"}
    assert {key: found[key] for key in ("task", "metrics", "n")} == json.loads((trained / "eval.json").read_text())
    assert cli("eval", trained, "--json").json() == found
    shown = cli("eval", alone)
    assert f"{found['metrics']['accuracy']:.4f}" in shown.out


def test_top5_counts_images_whose_class_is_among_the_five_likeliest(merged: Path, alone: Path, cli: Cli) -> None:
    labels = load_digits_split("test", 16)[1]
    ranks = (logits(timm_model(merged)).argsort(-1, descending=True) == labels[:, None]).float().argmax(-1)
    found = cli("eval", alone, "--json").json()["metrics"]["top5"]
    assert found == pytest.approx((ranks < 5).double().mean().item(), abs=0.003)
    assert f"top5 {found:.4f}" in " ".join(cli("eval", alone).out.replace("│", " ").split())


def test_evaluation_does_not_depend_on_the_batch_size(alone: Path, cli: Cli) -> None:
    one, other = (cli("eval", alone, f"eval.batch_size={size}", "--json").json() for size in (500, 7))
    assert one["metrics"]["accuracy"] == other["metrics"]["accuracy"]
    assert one["metrics"]["loss"] == pytest.approx(other["metrics"]["loss"], rel=1e-5)


def test_merge_tells_what_it_did_and_how_to_load_it(alone: Path, cli: Cli) -> None:
    done = cli("merge", alone, "--out", "merged.safetensors", "--json").json()
    assert done.keys() >= {"output", "tensors_changed", "max_abs_error", "verified"}
    assert done["tensors_changed"] == len(QKV)
    assert done["verified"] is True
    assert 0 <= done["max_abs_error"] < 1e-4
    loaded: Any = eval(done["load"], {"timm": timm})
    assert all(
        torch.equal(loaded.state_dict()[name], tensor) for name, tensor in load_file("merged.safetensors").items()
    )
    transform: Any = eval(done["preprocess"], {"timm": timm})
    image = load_digits_split("test", 20)[0][0]
    seen = evaluation_transform(Look(16, (0.5,) * 3, (0.5,) * 3))(to_pil_image(image))
    assert torch.equal(transform(to_pil_image(image)), seen)
    shown = cli("merge", alone, "--out", "merged.safetensors", "--force")
    assert "largest difference of outputs" in shown.out
    assert "create_transform" in shown.out


@pytest.mark.parametrize("command", [("merge",), ("export", "--to", "timm")])
def test_a_name_by_which_timm_would_not_load_it_is_refused(command: tuple[str, ...], alone: Path, cli: Cli) -> None:
    for out in ("expo", "expo/", "model.pt"):
        refused = cli(*command, alone, "--out", out)
        assert refused.code == 2
        assert f"{out.rstrip('/')}/model.safetensors" in refused.message
        assert not Path(out).exists()


def test_merged_weights_in_timm_predict_what_the_adapted_model_predicts(alone: Path, merged: Path) -> None:
    built = build_from_file(alone)
    adapted, plain = logits(built.model.eval()), logits(timm_model(merged))
    difference = (adapted - plain).abs().max().item()
    print(f"largest difference of logits: {difference:.2e}")
    assert torch.equal(adapted.argmax(-1), plain.argmax(-1))
    assert difference < 1e-4
    assert not torch.equal(plain, logits(timm_model(BASE)))  # six steps did change it


def test_k_and_whatever_is_no_target_keep_every_bit(merged: Path) -> None:
    base, after = load_file(BASE), load_file(merged)
    assert base.keys() == after.keys()
    for name, tensor in base.items():
        if name in QKV:
            (q, k, v), (new_q, new_k, new_v) = tensor.split(64), after[name].split(64)
            assert torch.equal(k.view(torch.int32), new_k.view(torch.int32))
            assert not torch.equal(q, new_q)
            assert not torch.equal(v, new_v)
        else:
            assert tensor.dtype == after[name].dtype
            assert torch.equal(tensor, after[name])


def test_merging_is_repeatable_and_says_where_it_came_from(alone: Path, merged: Path, cli: Cli) -> None:
    assert cli("merge", alone, "--out", "again.safetensors", "--no-verify").code == 0
    assert Path("again.safetensors").read_bytes() == merged.read_bytes()
    with safe_open(merged, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "superlora.merged_from": "glyphs_vit"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merging_casts_once(dtype: str, alone: Path, merged: Path, cli: Cli) -> None:
    done = cli("merge", alone, "--out", "half.safetensors", "--dtype", dtype, "--json").json()
    assert done["verified"] is True
    exact, half = load_file(merged), load_file("half.safetensors")
    wanted = getattr(torch, dtype)
    assert {tensor.dtype for tensor in half.values()} == {wanted}
    assert all(torch.equal(half[name], tensor.to(wanted)) for name, tensor in exact.items())


def test_unmerging_restores_the_base_within_rounding(alone: Path, merged: Path, cli: Cli) -> None:
    words = ("--base", merged, "--unmerge", "--out", "base.safetensors", "--json")
    assert cli("merge", alone, *words).json()["tensors_changed"] == len(QKV)
    base, restored, after = load_file(BASE), load_file("base.safetensors"), load_file(merged)
    for name, tensor in base.items():
        rounding = 2 * torch.finfo(torch.float32).eps * torch.maximum(tensor.abs(), after[name].abs())
        assert ((restored[name] - tensor).abs() <= rounding).all()


@pytest.mark.slow
def test_a_base_in_bfloat16_is_adapted_merged_and_kept_in_bfloat16(cli: Cli) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in load_file(BASE).items()}, "bf16.safetensors")
    assert cli("train", *QUICK, "model.checkpoint=bf16.safetensors", "train.precision=bf16", "--out", "run").code == 0
    done = cli("merge", "run", "--out", "merged.safetensors", "--json").json()
    assert done["verified"] is True
    assert {tensor.dtype for tensor in load_file("merged.safetensors").values()} == {torch.bfloat16}
    plain, after = load_file("bf16.safetensors"), load_file("merged.safetensors")
    for name in QKV:
        assert torch.equal(plain[name][64:128], after[name][64:128])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "recipe", "asset"),
    [
        (torch.float16, "quickstart", BASE),
        pytest.param(torch.bfloat16, "digits_unet_lora", ASSETS / "glyphs_unet.safetensors", marks=pytest.mark.slow),
    ],
)
def test_a_base_in_half_precision_sees_images_in_its_own(
    dtype: torch.dtype, recipe: str, asset: Path, cli: Cli
) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in load_file(asset).items()}, "half.safetensors")
    words = (*QUICK[1:], "model.checkpoint=half.safetensors", "train.precision=fp32", "eval.batch_size=100")
    if recipe != "quickstart":  # half precision takes its time on a CPU
        words += ("data.name=glyphs", "data.train_images=100", "data.eval_images=20", "train.batch_size=8")
    result = cli("train", recipe, *words, "--out", "run", "--json")
    assert result.code == 0, result.err
    trained = result.json()["metrics"]
    found = cli("eval", "run", "--json").json()["metrics"]
    assert found == {name: trained[name] for name in found}
    if recipe == "quickstart":
        exact = cli("eval", "run", "model.checkpoint=null", "--allow-base-mismatch", "--json").json()["metrics"]
        assert found["loss"] == pytest.approx(exact["loss"], abs=0.02)
        Path("images").mkdir()
        Image.new("RGB", (16, 16)).save("images/a.png")
        assert cli("eval", "run", "--predict", "images", "--out", "classes.csv", "--json").json()["n"] == 1
    else:
        assert cli("generate", "run", "--out", "images", "--num", "2", "--steps", "2", "--json").json()["num"] == 2


def test_a_new_head_travels_in_the_adapter_and_into_the_merged_weights(cli: Cli) -> None:
    run = cli("train", *QUICK, "model.head=new", "--json").json()
    assert run["params"] == {"adapter": 90, "head": 650, "base": run["params"]["base"]}
    assert cli("merge", run["run"], "--out", "merged.safetensors", "--json").json()["verified"] is True
    stored, after = load_file(run["adapter"]), load_file("merged.safetensors")
    assert torch.equal(stored["head.head.weight"], after["head.weight"])
    assert torch.equal(stored["head.head.bias"], after["head.bias"])
    found = cli("eval", run["run"], "--json").json()["metrics"]
    assert found["accuracy"] == run["metrics"]["accuracy"]
    plain = (logits(timm_model(Path("merged.safetensors"))).argmax(-1) == load_digits_split("test", 16)[1]).double()
    assert plain.mean().item() == found["accuracy"]


def test_inspect_shows_knobs_targets_base_and_metrics(trained: Path, alone: Path, cli: Cli) -> None:
    about = cli("inspect", alone, "--json").json()
    assert about["bytes"] == alone.stat().st_size
    assert about["params"] == {"adapter": 90, "head": 0}
    assert about["targets"] == ["q", "v"]
    assert about["base"]["name"] == "glyphs_vit"
    assert len(about["base"]["sha256"]) == 64
    assert (about["config"]["order"], about["config"]["rank"]) == (5, 2)
    assert about["recipe"]["data"]["name"] == "digits"
    assert about["metrics"]["accuracy"] == json.loads((trained / "eval.json").read_text())["metrics"]["accuracy"]
    shown = cli("inspect", trained).out
    for word in ("90 adapter, 0 head", "glyphs_vit", "q, v", "order 5"):
        assert word in shown


def test_the_header_of_an_adapter_holds_neither_time_nor_path(adapter: Path) -> None:
    with safe_open(adapter, framework="pt") as file:
        metadata = file.metadata()
    assert metadata.keys() >= {f"superlora.{name}" for name in (
        "format_version", "config", "targets", "base", "prng", "recipe", "metrics", "checksum")}  # fmt: skip
    assert str(Path.home()) not in str(metadata)
    assert "seconds" not in str(metadata)
    assert str(adapter.parent) not in str(metadata)


@pytest.mark.parametrize(("kind", "name"), [("recipes", "quickstart"), ("models", "glyphs_vit"), ("methods", "lorta")])
def test_ls_lists_what_there_is(kind: str, name: str, cli: Cli) -> None:
    assert name in cli("ls", kind).out
    rows = cli("ls", kind, "--json").json()[kind]
    assert any(name in row.values() for row in rows)
    if kind == "recipes":
        assert [row["name"] for row in rows] == list(shipped_recipes())


def test_validate_says_the_recipe_with_its_defaults(cli: Cli) -> None:
    found = cli("validate", "quickstart", "adapter.rank=1", "--json").json()
    assert found["valid"] is True
    assert found["recipe"]["train"]["precision"] == "fp32"
    assert "quickstart" in cli("validate", "quickstart").out
    assert "warnings" not in found


@pytest.mark.parametrize("name", ["moved", "torch/image_folder", "wds/moved", "moved.jsonl"])
def test_data_that_are_not_here_are_a_warning_of_validate(name: str, cli: Cli) -> None:
    words = ("quickstart", "model.head=new", f"data.name={name}")
    (warning,) = cli("validate", *words, "--json").json()["warnings"]
    assert "no such" in warning
    found = cli("validate", *words)
    assert (found.code, f"warning: {warning}" in found.out) == (0, True)


def test_sets_that_are_downloaded_need_not_be_here(cli: Cli) -> None:
    words = ("quickstart", "model.head=new", "data.name=torch/cifar100", "data.augment=none")
    assert "warnings" not in cli("validate", *words, "--json").json()
    assert cli("train", *words, "--dry-run", "--json").json()["params"]["head"] == 6500


@pytest.mark.parametrize("command", ["train", "preview"])
def test_data_that_are_not_here_are_no_unknown_number_of_classes(command: str, cli: Cli) -> None:
    found = cli(command, "quickstart", "model.head=new", "data.name=moved")
    assert (found.code, "unknown data set 'moved', and no such folder here" in found.message) == (2, True)


def test_schema_is_json_schema_and_a_table(cli: Cli) -> None:
    schema = cli("schema").json()
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["properties"].keys() >= {"task", "model", "data", "adapter", "train", "eval", "output", "seed"}
    assert "| `adapter.rank` |" in cli("schema", "--markdown").out


def test_the_version_is_printed(cli: Cli) -> None:
    from superlora_cli import __version__

    assert cli("--version").out == f"superlora {__version__}\n"


def test_what_only_training_wants_of_the_model_is_no_matter_afterwards(trained: Path, cli: Cli) -> None:
    words = ("train.shard_base=true", "train.compile=true", "train.profile=true", "train.gradient_checkpointing=true")
    plain = cli("eval", trained, "--json").json()
    assert cli("eval", trained, *words, "--json").json() == plain
