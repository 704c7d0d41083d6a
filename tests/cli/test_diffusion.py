"""Training a model of noise: the run, its files, and a loss that compares."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_fidelity
import torchvision.datasets as tv
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from superlora_cli.data.glyphs import render_glyphs
from superlora_cli.generation.extractors import OURS
from superlora_cli.models.cfg_unet import ConditionalUNet
from superlora_cli.models.unets import build_unet
from superlora_cli.recipe.load import load_recipe, recipe_from_dict
from superlora_cli.tasks.diffusion.task import Diffusion, noise_schedule
from tests.conftest import QUICK, Cli, contents, metrics, run_cli
from tests.data.test_torchvision_sets import write_mnist, write_svhn

pytestmark = pytest.mark.slow

SIZES = "channels: 8, multipliers: [1, 2], blocks: 1, image_size: 8, groups: 4"
BASE = f"""\
task: diffusion
model: {{name: cfg_unet, pretrained: false, kwargs: {{{SIZES}}}}}
data: {{name: glyphs, train_images: 100, eval_images: 60}}
train: {{steps: 4, batch_size: 16, threads: 1, ema: 0.5, optimizer: {{name: AdamW, lr: 0.003}}}}
"""
ADAPTER = f"""\
task: diffusion
model: {{name: cfg_unet, checkpoint: CHECKPOINT, kwargs: {{{SIZES}}}}}
data: {{name: digits}}
adapter: {{method: lorta, order: 3, rank: 2, alpha: 0.2}}
train: {{steps: 6, batch_size: 16, checkpoint_every: 3, threads: 1, optimizer: {{name: AdamW, lr: 0.1}}}}
eval: {{every: 3}}
"""
DROPOUT = "model.kwargs.dropout=0.2"


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base.yaml, the run of it in base/, and adapter.yaml for it, the run of which is in adapter/."""
    folder = tmp_path_factory.mktemp("diffusion")
    (folder / "base.yaml").write_text(BASE)
    (folder / "adapter.yaml").write_text(ADAPTER.replace("CHECKPOINT", str(folder / "base" / "model.safetensors")))
    for name in ("base", "adapter"):
        result = run_cli("train", folder / f"{name}.yaml", "--out", folder / name, "--json", "--quiet")
        assert result.code == 0, result.err
        (folder / f"{name}.json").write_text(result.out)
    return folder


def result_of(recipes: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((recipes / f"{name}.json").read_text())
    return found


def write_digits(folder: Path, count: int) -> None:
    """Printed digits as PNG files, 8×8."""
    folder.mkdir()
    for index, image in enumerate(render_glyphs("test", count, 8)[0]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:05d}.png")


# The run


def test_a_base_is_trained_whole_and_evaluates_to_the_loss_of_its_run(recipes: Path, cli: Cli) -> None:
    result = result_of(recipes, "base")
    assert result["params"]["adapter"] == 0
    assert result["metrics"].keys() == {"loss", "val_loss", "best_step"}
    for given in (recipes / "base", recipes / "base" / "model.safetensors"):
        assert cli("eval", given, "--json").json()["metrics"] == {"loss": result["metrics"]["loss"]}


def test_an_adapter_is_judged_before_and_after_and_says_nothing_of_accuracy(recipes: Path, cli: Cli) -> None:
    result = result_of(recipes, "adapter")
    assert result["metrics"].keys() == {"loss", "loss_before", "val_loss", "best_step"}
    assert result["metrics"]["loss"] != result["metrics"]["loss_before"]
    assert [line["step"] for line in metrics(recipes / "adapter") if "eval" in line] == [3, 6]
    shown = cli("train", recipes / "adapter.yaml", "--quiet").out
    for words in ("test loss before", "test loss", "validation loss", "adapter parameters"):
        assert words in shown
    assert "accuracy" not in shown


def test_the_file_alone_evaluates_to_the_same_loss_and_can_be_inspected(recipes: Path, cli: Cli) -> None:
    shutil.copy(recipes / "adapter" / "adapter.safetensors", "alone.safetensors")
    evaluated = cli("eval", "alone.safetensors", "--json").json()
    assert evaluated["metrics"] == {"loss": result_of(recipes, "adapter")["metrics"]["loss"]}
    assert (evaluated["task"], evaluated["n"]) == ("diffusion", 500)
    assert "per_class" not in evaluated
    assert "loss" in cli("eval", "alone.safetensors").out
    about = cli("inspect", "alone.safetensors", "--json").json()
    assert about["metrics"].keys() == {"loss", "loss_before", "val_loss", "best_step"}
    assert about["recipe"]["task"] == "diffusion"


def test_a_run_is_measured_by_images_that_it_makes_once(recipes: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(recipes / "adapter", "run"))
    words = ("--against", "digits:test", "--extractor", "digits", "--num", 30, "--steps", 2, "--json")
    found = cli("eval", run, *words).json()
    assert (found["n"], found["images"], found["reference"]["name"]) == (30, str(run), "digits:test")
    assert found["generated"]["params"] == result_of(recipes, "adapter")["params"]["adapter"]
    assert 0 <= found["metrics"]["class_accuracy"] <= 1
    assert json.loads((run / "samples" / "metrics.json").read_text()) == found
    assert len(contents(run / "samples" / "images")) == 30

    write_digits(Path("real"), 40)
    theirs = torch_fidelity.calculate_metrics(
        input1=str(run / "samples" / "images"), input2="real", feature_extractor=OURS, cuda=False, save_cpu_ram=True,
        cache=False, verbose=False, fid=True, kid=True, kid_subset_size=30,
    )  # fmt: skip
    ours = cli("eval", run / "samples", "--against", "real", "--extractor", "digits", "--json").json()["metrics"]
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4, abs=1e-6)

    again = cli("eval", run, *words).json()
    assert again["generated"]["seconds"] == 0
    assert again["metrics"] == found["metrics"]
    assert cli("eval", run / "adapter.safetensors", *words).json()["metrics"] == found["metrics"]
    assert cli("eval", run / "samples", *words[:4], "--json").json()["metrics"] == found["metrics"]

    other = cli("eval", run, *words, "--seed", 1).json()
    assert other["generated"]["seconds"] > 0
    assert other["metrics"]["fid"] != found["metrics"]["fid"]
    assert "generated by" in cli("eval", run, *words[:-1]).out


def test_what_a_run_is_measured_by_goes_where_it_is_told(recipes: Path, cli: Cli) -> None:
    words = ("--against", "digits", "--extractor", "digits", "--num", 24, "--steps", 1)
    assert cli("eval", recipes / "adapter", *words, "--out", "made").code == 0
    assert len(list(Path("made/images").glob("0*.png"))) == 24
    assert not (recipes / "adapter" / "samples").exists()
    full = cli("eval", recipes / "adapter", *words, "--out", "made", "--seed", 2)
    assert "--force" in full.message
    assert "does not apply to a folder of images" in cli("eval", "made", *words[:4], "--num", 3).message
    assert "--against digits:test" in cli("eval", recipes / "adapter", "--num", 3).message
    missing = cli("eval", recipes / "adapter", *words[:2], "--num", 24)  # Inception, told before images are made
    assert "--extractor digits" in missing.message


def test_merged_is_adapted(recipes: Path, cli: Cli) -> None:
    merged = cli("merge", recipes / "adapter", "--out", "merged.safetensors", "--json").json()
    assert merged["verified"]
    assert merged["max_abs_error"] < 1e-5
    assert merged["tensors_changed"] == 2 * 7
    assert merged["load"].startswith("model = ConditionalUNet(blocks=1, channels=8, ")
    sizes = load_recipe(recipes / "base.yaml").model.kwargs
    ConditionalUNet(**sizes).load_state_dict(load_file("merged.safetensors"))
    words = ("model.checkpoint=merged.safetensors", "train.steps=1", "train.checkpoint_every=null", "eval.every=null")
    result = cli("train", recipes / "adapter.yaml", *words, "--json", "--quiet").json()
    expected = result_of(recipes, "adapter")["metrics"]["loss"]
    assert result["metrics"]["loss_before"] == pytest.approx(expected, rel=1e-5)


def test_a_dry_run_changes_nothing_for_a_training_in_the_same_process(recipes: Path, cli: Cli) -> None:
    for words in (["--dry-run"], ["--quiet", "--out", "run"]):
        assert cli("train", recipes / "adapter.yaml", "train.steps=1", "diffusion.steps=77", *words).code == 0


@pytest.mark.parametrize(("step", "words"), [(2, ()), (5, (DROPOUT, "train.ema=0.9", "train.accumulate=2"))])
def test_a_run_that_died_and_was_resumed_equals_an_uninterrupted_one(
    step: int, words: tuple[str, ...], recipes: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = Diffusion.loss, iter(range(1, 1000))

    def loss(self: Diffusion, batch: Any) -> Tensor:
        if next(calls) == step:
            raise MemoryError("as if the machine went down")
        return plain(self, batch)

    monkeypatch.setattr(Diffusion, "loss", loss)
    train = ("train", recipes / "adapter.yaml", *words, "--quiet")
    assert cli(*train, "--out", "run").code == 1
    assert cli(*train, "--out", "run", "--resume", "auto").code == 0
    assert cli(*train, "--out", "whole").code == 0
    resumed, whole = contents(Path("run")), contents(Path("whole"))
    for name in ("adapter.safetensors", "eval.json", "checkpoints/step-000006/adapter.safetensors"):
        assert resumed[name] == whole[name]


def test_loader_processes_change_nothing(recipes: Path, cli: Cli) -> None:
    assert cli("train", recipes / "adapter.yaml", "data.workers=1", "--out", "run", "--quiet").code == 0
    here, there = (load_file(folder / "adapter.safetensors") for folder in (Path("run"), recipes / "adapter"))
    assert all(torch.equal(here[name], there[name]) for name in there)


def test_the_recipe_of_another_task_is_what_it_was() -> None:
    assert load_recipe(QUICK[0]).to_dict().keys() == {
        "task", "seed", "model", "data", "adapter", "train", "eval", "output"
    }  # fmt: skip


# The loss


class Recorder(nn.Module):
    """Predicts nothing and remembers what it was asked."""

    classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, images: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        self.asked.append((images, steps, labels))
        return torch.zeros_like(images)


def diffusion(**settings: float) -> Any:
    return recipe_from_dict(
        {"task": "diffusion", "model": {"name": "glyphs_unet"}, "data": {"name": "digits"}, "diffusion": settings,
         "train": {"steps": 1, "optimizer": {"lr": 0.1}}}, "a test")  # fmt: skip


def test_noise_is_added_as_the_schedule_says() -> None:
    images, labels, model = torch.full((64, 3, 8, 8), 0.5), torch.arange(64) % 10, Recorder()
    torch.manual_seed(0)
    loss = Diffusion.objective(model, diffusion(), (images, labels))
    ((noisy, steps, _),) = model.asked
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[steps][:, None, None, None]
    noise = (noisy - kept.sqrt() * images) / (1 - kept).sqrt()
    torch.testing.assert_close(loss, noise.square().mean(), rtol=1e-3, atol=1e-3)
    assert abs(noise.mean()) < 0.05
    assert 0 <= steps.min() < 100
    assert 900 < steps.max() < 1000


@pytest.mark.parametrize("dropout", [0.0, 0.1, 1.0])
def test_a_class_is_told_or_left_out_at_random(dropout: float) -> None:
    labels, model = torch.arange(2000) % 10, Recorder()
    torch.manual_seed(0)
    Diffusion.objective(model, diffusion(class_dropout=dropout), (torch.zeros(2000, 3, 1, 1), labels))
    told = model.asked[0][2]
    named = told != 0
    assert torch.equal(told[named], labels[named] + 1)
    assert 1 - named.double().mean().item() == pytest.approx(dropout, abs=0.02)


def test_the_schedule_is_the_recipes() -> None:
    schedule = noise_schedule(diffusion(steps=50, beta_start=0.01, beta_end=0.1))
    torch.testing.assert_close(schedule.betas, torch.linspace(0.01, 0.1, 50))


def test_the_validation_loss_does_not_depend_on_the_batch_size(recipes: Path, cli: Cli) -> None:
    losses = [cli("eval", recipes / "adapter", f"eval.batch_size={size}", "--json").json() for size in (256, 7)]
    one, other = (found["metrics"]["loss"] for found in losses)
    assert one == pytest.approx(other, rel=1e-6)


def test_two_settings_differ(recipes: Path, cli: Cli) -> None:
    found = cli("train", recipes / "adapter.yaml", "adapter.rank=1", "--json", "--quiet").json()["metrics"]
    other = result_of(recipes, "adapter")["metrics"]
    assert found["loss_before"] == other["loss_before"]
    assert found["loss"] != other["loss"]
    assert found["val_loss"] != other["val_loss"]


def test_every_image_is_judged_at_time_steps_and_noise_of_its_own_over_the_whole_range() -> None:
    task = Diffusion.__new__(Diffusion)
    task.recipe = diffusion()
    steps, noise = task._draws(range(1000), torch.zeros(1000, 3, 2, 2))
    counts = torch.histc(steps.float(), bins=20, min=0, max=1000)
    assert counts.min() >= 48
    assert counts.max() <= 52
    assert abs(noise.mean()) < 0.05
    again, same = task._draws([7, 3], torch.zeros(2, 3, 2, 2))
    assert torch.equal(again, steps[[7, 3]])
    assert torch.equal(same, noise[[7, 3]])


# Data and bases


@pytest.mark.parametrize(("name", "write"), [("svhn", write_svhn), ("mnist", write_mnist)])
def test_street_numbers_and_handwriting_are_read_in_their_own_formats(
    name: str, write: Any, recipes: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tv.svhn, "check_integrity", lambda path, md5=None: Path(path).is_file())
    seen = []
    plain = Diffusion.objective

    def objective(model: nn.Module, recipe: Any, batch: Any) -> Tensor:
        seen.append(batch[0])
        return plain(model, recipe, batch)

    monkeypatch.setattr(Diffusion, "objective", staticmethod(objective))
    Path("data").mkdir()
    write(Path("data"))
    words = (f"data.name=torch/{name}", "train.steps=2", "train.batch_size=4", "eval.every=1")
    for recipe in ("base", "adapter"):
        result = cli("train", recipes / f"{recipe}.yaml", *words, "--out", recipe, "--json", "--quiet").json()
        assert result["metrics"]["loss"] > 0
    images = torch.cat(seen)
    assert images.shape[1:] == (3, 8, 8)
    assert -1 <= images.min() < -0.3
    assert 0.3 < images.max() <= 1
    assert torch.equal(images[:, 0], images[:, 1]) == (name == "mnist")


def test_the_full_size_sees_mnist_at_32_pixels() -> None:
    recipe = load_recipe("unet_svhn_to_mnist_lorta5d")
    base = build_unet(recipe.model, weights=False)
    assert (base.image_size, base.mean, base.std) == (32, (0.5,) * 3, (0.5,) * 3)


def test_diffusers_own_unet_is_adapted(recipes: Path, cli: Cli) -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, num_class_embeds=11,
        down_block_types=("AttnDownBlock2D",) * 2, up_block_types=("AttnUpBlock2D",) * 2,
    ).save_pretrained("saved")  # fmt: skip
    words = ("model={name: diffusers, kwargs: {path: saved}}", "train.steps=2", "train.gradient_checkpointing=true")
    result = cli("train", recipes / "adapter.yaml", *words, "--out", "run", "--json", "--quiet").json()
    assert cli("eval", "run", "--json").json()["metrics"]["loss"] == result["metrics"]["loss"]
    assert cli("merge", "run", "--out", "merged.safetensors", "--json").json()["verified"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "quickstart", "task=diffusion"), "task: glyphs_vit is a base for classification, not for diffusion"),
        (
            ("train", "quickstart", "diffusion.steps=10"),
            "diffusion.steps=10: does not apply to the task classification",
        ),
        (("train", "ADAPTER", "task=classification"), "task: cfg_unet is a base for diffusion, not for classification"),
        (
            ("train", "ADAPTER", "model={name: cfg_unet, pretrained: false, kwargs: {classes: 9}}"),
            "'digits' has 10 classes, the model 9",
        ),
        (("train", "ADAPTER", "model.checkpoint=null"), "model.pretrained: cfg_unet has no pretrained weights"),
        (("train", "ADAPTER", "model.kwargs.depth=3"), "model.kwargs: cfg_unet has no argument 'depth'"),
        (("train", "ADAPTER", "data.image_size=9"), "data.image_size"),
        (("train", "ADAPTER", "diffusion.step=10"), "did you mean 'steps'"),
        (("train", "ADAPTER", "diffusion.class_dropout=2"), "diffusion.class_dropout"),
        (("eval", "RUN", "--plot", "matrix.png"), "--plot: the task diffusion has no confusion matrix"),
        (("eval", "RUN", "--predict", "."), "predicts no classes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_does_not_go_together_is_one_line(words: tuple[str, ...], says: str, recipes: Path, cli: Cli) -> None:
    Image.new("RGB", (8, 8)).save("image.png")
    given = {"ADAPTER": str(recipes / "adapter.yaml"), "RUN": str(recipes / "adapter")}
    result = cli(*(given.get(word, word) for word in words))
    assert result.code in (2, 3)
    assert says in result.message
