"""Text to image from end to end, on tiny pipelines of every family: train, resume, evaluate, generate, merge."""

from __future__ import annotations

import json
import os
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from superlora_cli.data.images import cropped
from superlora_cli.models.families import FAMILIES
from superlora_cli.models.pipelines import PipelineBase, build_pipeline, placed
from superlora_cli.opening.build import build_from_file
from superlora_cli.recipe.schema import ModelSection
from superlora_cli.tasks.text_to_image.batches import dealt, epoch, repeated
from superlora_cli.tasks.text_to_image.cache import Cache
from superlora_cli.tasks.text_to_image.encoding import Seen
from superlora_cli.tasks.text_to_image.notes import not_repeated
from superlora_cli.tasks.text_to_image.objective import Batch, Objective
from superlora_cli.tasks.text_to_image.section import Prior, TextToImageSection
from superlora_cli.tasks.text_to_image.sizes import buckets, nearest
from superlora_cli.tasks.text_to_image.task import TextToImage
from superlora_cli.training.run import RunFolder
from tests import pipelines
from tests.conftest import Cli, contents, metrics
from tests.forking.commands import Commands
from tests.training.launching import together

CAPTIONS = {"a.png": "a red seven on a blue ground, serif", "b.png": "a dog", "c.jpg": "cat", "d.png": "e", "e.png": ""}
SIZES = {"a.png": (40, 40), "b.png": (64, 32), "c.jpg": (16, 32), "d.png": (20, 20), "e.png": (16, 16)}
FAMILY = "StableDiffusion"


def recipe(pipeline: Path, data: Path | str, *more: str) -> str:
    """The text of a recipe."""
    return "\n".join([
        "task: text-to-image",
        f'model: {{name: "diffusers:{pipeline}"}}',
        f"data: {{name: {data}, image_size: 16, validation: 0}}",
        "adapter: {method: lora, rank: 2, targets: [q, v, mlp]}",
        "train: {steps: 4, batch_size: 2, checkpoint_every: 2, threads: 1, log_every: 1}",
        *more,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images with captions, of which one is empty; read only."""
    folder = tmp_path_factory.mktemp("captioned")
    draw = np.random.RandomState(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(draw.randint(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(CAPTIONS[name])
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny pipelines; read only."""
    root = tmp_path_factory.mktemp("pipelines")
    return {name: pipelines.saved(name, root / name) for name in pipelines.FAMILIES}


@pytest.mark.slow
@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_a_family_from_training_to_merged_images(
    family: str, folders: dict[str, Path], data: Path, cli: Cli, tmp_path: Path
) -> None:
    side = pipelines.unit(family)
    width = 24 if side == 16 else 2 * side
    settings = "text-to-image: {caption_dropout: 0.3, noise_offset: 0.1}"
    text = recipe(folders[family], data, settings, "seed: 3").replace("image_size: 16", f"image_size: {side}")
    (tmp_path / "r.yaml").write_text(text)
    done = cli("train", "r.yaml", "train.ema=0.5", "--out", "run", "--json")
    assert done.code == 0, done.err
    assert "left out 1 of 5 images (no caption)" in (tmp_path / "run" / "log.txt").read_text()

    shutil.copytree("run", "half")
    shutil.rmtree(RunFolder(Path("half")).latest_checkpoint() or "")
    (tmp_path / "half" / "adapter.safetensors").unlink()
    assert cli("train", "r.yaml", "train.ema=0.5", "--resume", "half", "--json").code == 0
    assert Path("half", "adapter.safetensors").read_bytes() == Path("run", "adapter.safetensors").read_bytes()
    assert metrics(Path("half")) == metrics(Path("run"))

    judged = cli("eval", "run", "--json").json()
    assert judged["metrics"]["loss"] == pytest.approx(done.json()["metrics"]["loss"], abs=1e-6)

    words = ("--prompt", "a red seven", "--prompt", "dog", "--steps", "2", "--seed", "5", "--json")
    made = cli("generate", "run", *words, "--size", f"{width}x{side}", "--out", "images", "--scale", "0,1")
    assert made.code == 0, made.err
    merged = cli("merge", "run", "--out", "merged", "--json")
    assert merged.code == 0, merged.err
    assert merged.json()["max_abs_error"] < 1e-5
    kind = type(pipelines.made(family)).__name__
    pipeline = getattr(diffusers, kind).from_pretrained("merged")
    call = {"width": width, "height": side, "num_inference_steps": 2, "output_type": "pt", **FAMILIES[kind].call}
    names = sorted(path.name for path in Path("images", "images").iterdir())
    assert names == ["00000_a_red_seven.png", "00001_dog.png", "00002_a_red_seven.png", "00003_dog.png"]
    for model, name in ((pipelines.made(family), names[0]), (pipeline, names[2])):
        image = model(prompt="a red seven", generator=torch.Generator().manual_seed(5), **call)
        theirs = np.array(Image.open(Path("images", "images", name))).astype(int)
        ours = (image.images[0].permute(1, 2, 0) * 255).round().numpy().astype(int)
        assert np.abs(ours - theirs).max() <= 1  # of 255: pairs of images are rounded a little differently


@pytest.fixture
def prepared(folders: dict[str, Path], data: Path, cli: Cli, tmp_path: Path) -> Cli:
    """Runs commands in a folder with `r.yaml`."""
    (tmp_path / "r.yaml").write_text(recipe(folders[FAMILY], data))
    return cli


@pytest.mark.parametrize(("family", "weights"), [(FAMILY, 24), ("ZImage", 15), ("QwenImage", 8)])
def test_a_dry_run_needs_neither_data_nor_weights(
    prepared: Cli, folders: dict[str, Path], family: str, weights: int
) -> None:
    shutil.copytree(folders[family], "bare")
    for file in Path("bare").rglob("*.safetensors"):
        file.unlink()
    found = prepared("train", "r.yaml", "model.name=diffusers:bare", "data.name=nowhere", "--dry-run", "--json").json()
    assert found["targets"]["weights"] == weights
    assert found["memory"]["total"] > 0


def test_a_run_that_made_the_model_worse_says_so(prepared: Cli) -> None:
    words = (
        "train",
        "r.yaml",
        "train.steps=1",
        "train.scheduler={name: constant}",
        "adapter.targets=[conv_out]",
        "--json",
    )
    same, ruined = (prepared(*words, f"train.optimizer.lr={rate}", "--out", f"at{rate}").json() for rate in (0, 1000))
    assert "warnings" not in same
    assert "is worse than the unadapted model: loss" in ruined["warnings"][-1]


def test_an_autoencoder_that_overflows_in_half_precision_works_in_float32(
    prepared: Cli, folders: dict[str, Path]
) -> None:
    shutil.copytree(folders[FAMILY], "big")
    (file,) = Path("big", "vae").glob("*.safetensors")
    words = ("train", "r.yaml", "model={name: diffusers:big, kwargs: {torch_dtype: float16}}", "train.steps=1")
    for factor, code in ((1e5, 0), (float("nan"), 1)):
        tensors = load_file(file)
        tensors["encoder.conv_in.weight"] *= factor
        save_file(tensors, file, metadata={"format": "pt"})
        done = prepared(*words, "--out", f"run{code}", "--json")
        assert done.code == code, done.err
    assert done.json()["error"]["message"] == "the autoencoder makes NaN or Inf of it"
    assert done.json()["error"]["where"] == "a.png"


def test_captions_that_are_cut_and_tiny_images_are_named(prepared: Cli, data: Path) -> None:
    shutil.copytree(data, "photos")
    Path("photos", "b.txt").write_text("a word " * 50)
    words = ("data={name: photos, image_size: 64, validation: 0}", "train.steps=1", "--out", "run", "--json")
    notes = "\n".join(prepared("train", "r.yaml", *words).json()["notes"])
    assert "1 of 4 captions are cut at 77 tokens, where reading ends: b.png" in notes
    assert "2 of 4 images are enlarged at least twofold, and blurred: c.jpg, d.png" in notes


@pytest.mark.parametrize(("kept", "orders"), [(0, 2), (1, 1), (None, 1)])
def test_images_are_mirrored_and_captions_shuffled_at_random(
    prepared: Cli, monkeypatch: pytest.MonkeyPatch, kept: int | None, orders: int
) -> None:
    batch, seen = TextToImage.batch, []
    monkeypatch.setattr(
        TextToImage, "batch", lambda task, own, *more: seen.append((task, own)) or batch(task, own, *more)
    )
    monkeypatch.setattr(TextToImage, "evaluate", lambda task, split: {"loss": 1.0})
    shuffled = {} if kept is None else {"shuffle_captions": kept}
    words = f"text-to-image={json.dumps({'flip': True, **shuffled})}"
    assert prepared("train", "r.yaml", words, "train.steps=12", "--out", "run").code == 0
    own = [sample for _, samples in seen for sample in samples if sample.number == 0]
    assert {sample.flipped for sample in own} == {True, False}
    assert len({sample.caption for sample in own}) == orders
    cache = seen[0][0].cache
    plain, mirrored = (
        next(cache.get(one.latents)["latents"] for one in own if one.flipped is flipped) for flipped in (False, True)
    )
    assert plain.shape == mirrored.shape
    assert not torch.equal(plain, mirrored)


def test_a_preview_shows_images_as_cropped_their_sizes_and_what_is_left_out(prepared: Cli, data: Path) -> None:
    words = ("preview", "r.yaml", "text-to-image.repeats={a.png: 3}")
    found = prepared(*words, "--count", "3", "--json").json()
    assert found["captions"] == [CAPTIONS[name] for name in ("a.png", "b.png", "c.jpg")]
    sizes = [(size["width"], size["height"], size["images"], size["seen"]) for size in found["sizes"]]
    assert sizes == [(8, 32, 1, 1), (16, 16, 3, 5)]
    assert found["left_out"] == [{"path": str(data / "e.png"), "cause": "no caption"}]
    sheet, wanted = np.asarray(Image.open("preview.png")), cropped(Image.open(data / "c.jpg"), (8, 32))
    places = [
        (y, x)
        for y, x in product(range(sheet.shape[0] - 127), range(sheet.shape[1] - 31))
        if np.array_equal(sheet[y : y + 128 : 4, x : x + 32 : 4], ((wanted + 1) * 127.5).round().permute(1, 2, 0))
    ]
    assert len(places) == 16  # four times as large
    shown = prepared(*words, "--force").out
    assert "3 images, 5 in an epoch" in shown
    assert "left out 1 of 5 images (no caption)" in " ".join(shown.split())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["StableDiffusionXL", "ZImage"])
def test_a_dry_run_counts_a_base_in_half_precision(prepared: Cli, folders: dict[str, Path], family: str) -> None:
    words = ("train", "r.yaml", f"model.name=diffusers:{folders[family]}", "--dry-run", "--json")
    plain, half = (prepared(*words, *more).json()["memory"] for more in ((), ("model.kwargs.torch_dtype=bfloat16",)))
    assert half["base"] == pytest.approx(plain["base"] / 2, rel=0.02)
    assert half["activations"] < 0.8 * plain["activations"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["model.name=diffusers:nowhere/at/all"], 2, "no such folder"),
        (["model.name=diffusers:nowhere/pipeline"], 2, "FOLDER is a pipeline on this machine"),
        (["data.caption=a {name}"], 2, "unknown field '{name}'"),
        (["data.caption=a {class}"], 2, "in no folder that names its class"),
        (["data.name=torch/mnist"], 2, "has no captions"),
        (["data.image_size=20"], 2, "multiple of 8"),
        (["model.kwargs.torch_dtype=half"], 2, "unknown dtype 'half'"),
        (["model.kwargs.revision=main"], 2, "has no argument 'revision'"),
        (["text-to-image.times=normal"], 2, "'logit-normal'"),
        (["text-to-image.prior={images: nowhere}"], 2, "text-to-image.prior: "),
        (["adapter.targets=['text_encoder.*.nothing']"], 2, "matches no weight"),
        (["model.kwargs.component=[unet, text_encoder]"], 2, "trains text encoders without an adapter only"),
        (["text-to-image.repeats={'*': 0}"], 2, "a whole number ≥ 1"),
        (["text-to-image.repeats={'dogs/*': 2}"], 2, "matches no training image"),
        (["model.name=photos"], 2, "unknown model 'photos'"),
        (["task=diffusion", "data.name=digits"], 2, "is a base for text-to-image, not for diffusion"),
    ],
)
def test_what_is_wrong_is_one_line(prepared: Cli, words: list[str], code: int, said: str) -> None:
    result = prepared("train", "r.yaml", *words, "--out", "run")
    assert result.code == code
    assert said in result.message
    assert not Path("run").exists()


@pytest.mark.parametrize("damage", ["gone", "cut", "foreign", "json", "class", "part", "scheduler", "vae"])
def test_a_damaged_pipeline_is_one_line(prepared: Cli, folders: dict[str, Path], damage: str) -> None:
    shutil.copytree(folders[FAMILY], "broken")
    weights = Path("broken", "unet", "diffusion_pytorch_model.safetensors")
    index = Path("broken", "model_index.json")
    if damage == "gone":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "foreign":
        index.write_text(index.read_text().replace("StableDiffusionPipeline", "KandinskyPipeline"))
    elif damage == "class":
        index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    elif damage == "part":
        index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "scheduler"}))
    elif damage in ("scheduler", "vae"):
        config = next(Path("broken", damage).glob("*config.json"))
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"num_train_timesteps": [], "block_out_channels": 7})
        )
    else:
        index.write_text("{")
    result = prepared("train", "r.yaml", "model.name=diffusers:broken", "--out", "run")
    assert result.code == 2
    assert "broken" in result.message


def test_a_flow_has_no_min_snr(cli: Cli, folders: dict[str, Path], data: Path) -> None:
    Path("r.yaml").write_text(recipe(folders["Flux"], data, "text-to-image: {min_snr: 5}"))
    assert "a flow has no min-SNR weights" in cli("train", "r.yaml", "--out", "run").message


def test_options_of_the_other_way_to_generate_are_refused(prepared: Cli) -> None:
    assert prepared("train", "r.yaml", "train.steps=1", "--out", "run").code == 0
    before = contents(Path("run"))
    for words, said in (
        (("--classes", "1"), "--classes: does not apply to the task text-to-image"),
        ((), "no prompt is given"),
        (("--prompt", "a", "--size", "17x16"), "not a multiple of 8"),
        (("--prompt", "a", "--steps", "0"), "--steps: 0 is too few (1 or more)"),
        (("--prompt", "a", "--size", "16"), "is not a size"),
        (("--prompt", "a", "--scale", "0,x"), "not a list of numbers"),
        (("--prompts", "nowhere"), "cannot be read"),
    ):
        result = prepared("generate", "run", "--out", "images", *words)
        assert result.code == 2
        assert said in result.message
        assert not Path("images").exists()
    assert "of classes" not in prepared("eval", "run", "--against", "digits:test").message
    assert prepared("merge", "run", "--out", "run").code == 2
    assert "--base: does not apply" in prepared("merge", "run", "--base", "r.yaml", "--out", "merged").message
    assert contents(Path("run")) == before


ENCODERS = {
    "StableDiffusion": "text_encoder.*.q_proj",
    "StableDiffusionXL": "text_encoder_2.*.v_proj",
    "StableDiffusion3": "text_encoder_3.*.SelfAttention.q",
    "Flux": r"re:text_encoder_2\..*\.SelfAttention\.v",
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODERS)
def test_a_text_encoder_is_adapted_if_its_name_is_a_target(
    family: str, folders: dict[str, Path], data: Path, cli: Cli
) -> None:
    """From training to merged images; the short name `q` is the denoiser's alone."""
    Path("r.yaml").write_text(recipe(folders[family], data, "text-to-image: {caption_dropout: 0.3}"))
    words = ("train", "r.yaml", f"adapter.targets=[q, '{ENCODERS[family]}']", "--json")
    done = cli(*words, "--out", "run")
    assert done.code == 0, done.err
    adapted = [target.module for target in build_from_file(Path("run", "adapter.safetensors")).adapter.targets]
    assert len([name for name in adapted if name.startswith("text_encoder")]) == 2
    shutil.copytree("run", "half")
    shutil.rmtree(RunFolder(Path("half")).latest_checkpoint() or "")
    Path("half", "adapter.safetensors").unlink()
    assert cli(*words, "--resume", "half").code == 0
    assert Path("half", "adapter.safetensors").read_bytes() == Path("run", "adapter.safetensors").read_bytes()
    assert cli("generate", "run", "--prompt", "dog", "--steps", "2", "--out", "images").code == 0
    refused = cli("export", "run", "--to", "peft-lora", "--out", "lora")
    assert "superlora merge writes the whole pipeline" in refused.message
    merged = cli("merge", "run", "--out", "merged")
    assert merged.code == 0, merged.err
    pipeline = getattr(diffusers, type(pipelines.made(family)).__name__).from_pretrained("merged")
    name = ENCODERS[family].removeprefix("re:").partition(".")[0].rstrip("\\")
    old, new = (dict(getattr(model, name).named_parameters()) for model in (pipelines.made(family), pipeline))
    assert len([key for key, value in old.items() if not torch.equal(value, new[key])]) == 2
    noise = torch.Generator().manual_seed(0)
    image = pipeline("dog", width=16, height=16, num_inference_steps=2, generator=noise, output_type="pt").images[0]
    ours = np.array(Image.open(next(Path("images", "images").iterdir()))).astype(int)
    assert np.abs((image.permute(1, 2, 0) * 255).round().numpy().astype(int) - ours).max() <= 1


def generated(cli: Cli, run: str, prompt: str) -> Path:
    """The image that `superlora generate` makes of a prompt."""
    made = cli("generate", run, "--prompt", prompt, "--out", "images", "--json")
    assert made.code == 0, made.err
    return next(Path("images", "images").iterdir())


def is_on(sheet: Path, image: Path) -> bool:
    """Whether an image is on a sheet, where all are shown eight times as large."""
    found, wanted = np.asarray(Image.open(sheet)), np.asarray(Image.open(image))
    places = product(range(found.shape[0] - 127), range(found.shape[1] - 127))
    return any(np.array_equal(found[y : y + 128 : 8, x : x + 128 : 8], wanted) for y, x in places)


@pytest.mark.slow
def test_a_denoiser_and_its_text_encoder_are_trained_whole(prepared: Cli, folders: dict[str, Path]) -> None:
    """Without an adapter, from the pipeline's own weights: resumed, used and merged like an adapter."""
    words = (
        "train",
        "r.yaml",
        "adapter=null",
        "model.kwargs.component=[text_encoder, unet]",
        "train.optimizer.lr=1e-3",
    )
    done = prepared(*words, "--out", "run", "--json")
    assert done.code == 0, done.err
    shutil.copytree("run", "half")
    shutil.rmtree(RunFolder(Path("half")).latest_checkpoint() or "")
    Path("half", "model.safetensors").unlink()
    assert prepared(*words, "--resume", "half").code == 0
    assert Path("half", "model.safetensors").read_bytes() == Path("run", "model.safetensors").read_bytes()
    merged = prepared("merge", "run", "--out", "merged", "--json")
    assert merged.code == 0, merged.err
    assert merged.json()["max_abs_error"] == 0
    old, new = (diffusers.StableDiffusionPipeline.from_pretrained(place) for place in (folders[FAMILY], "merged"))
    for part, trained in (("unet", True), ("text_encoder", True), ("vae", False)):
        before, after = (dict(getattr(pipeline, part).named_parameters()) for pipeline in (old, new))
        assert any(not torch.equal(value, after[name]) for name, value in before.items()) == trained
        if trained:
            count = sum(len(list(getattr(new, name).parameters())) for name in ("unet", "text_encoder"))
            assert merged.json()["tensors_changed"] == count
    assert prepared("generate", "run", "--prompt", "dog", "--steps", "2", "--out", "images").code == 0
    noise = torch.Generator().manual_seed(0)
    image = new("dog", width=16, height=16, num_inference_steps=2, generator=noise, output_type="pt").images[0]
    ours = np.array(Image.open(next(Path("images", "images").iterdir()))).astype(int)
    assert np.abs((image.permute(1, 2, 0) * 255).round().numpy().astype(int) - ours).max() <= 1


@pytest.mark.slow
def test_validation_prompts_are_painted_at_every_evaluation(prepared: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    prompts = "text-to-image.validation_prompts=['a red seven', 'a dog']"
    asked = ("eval.every=2", "output.trackers=[tensorboard]")
    assert prepared("train", "r.yaml", *asked, "--out", "plain").code == 0
    load, loaded = PipelineBase.pipeline, []
    monkeypatch.setattr(PipelineBase, "pipeline", lambda base: loaded.append(base) or load(base))
    done = prepared("train", "r.yaml", *asked, prompts, "train.keep=1", "--out", "run")
    assert done.code == 0, done.err
    assert len(loaded) == 1  # for both evaluations
    plain, run = (load_file(Path(name, "adapter.safetensors")) for name in ("plain", "run"))
    assert all(torch.equal(plain[name], run[name]) for name in plain)
    assert contents(Path("run", "pictures")).keys() == {"step-000002.png", "step-000004.png"}
    assert not Path("plain", "pictures").exists()
    events = EventAccumulator(str(next(Path("run", "tensorboard").rglob("events*")).parent), {"images": 0})
    assert [event.step for event in events.Reload().Images("eval/pictures")] == [2, 4]
    assert is_on(Path("run/pictures/step-000004.png"), generated(prepared, "run", "a dog"))
    shutil.rmtree("images", ignore_errors=True)
    older = generated(prepared, "run/checkpoints/step-000002", "a dog")
    assert is_on(Path("run/pictures/step-000002.png"), older)
    assert prepared("report", "run", "--out", "report.html").code == 0
    assert "the validation prompts at step-000004" in Path("report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("half", ["train.precision=bf16", "model.kwargs={torch_dtype: bfloat16}"])
@pytest.mark.parametrize("family", ["StableDiffusion", "Flux"])
def test_half_precision_from_training_to_a_merged_pipeline(
    family: str, half: str, folders: dict[str, Path], data: Path, cli: Cli, recwarn: pytest.WarningsRecorder
) -> None:
    Path("r.yaml").write_text(recipe(folders[family], data))
    losses = {}
    for name, words in (("plain", ()), ("half", (half,))):
        done = cli("train", "r.yaml", "train.steps=2", *words, "--out", name, "--json")
        assert done.code == 0, done.err
        losses[name] = done.json()["metrics"]["loss"]
    assert losses["plain"] != losses["half"] == pytest.approx(losses["plain"], abs=0.02)
    assert cli("eval", "half", "--json").json()["metrics"]["loss"] == pytest.approx(losses["half"], abs=1e-3)
    assert cli("generate", "half", "--prompt", "a", "--steps", "2", "--out", "images").code == 0
    merged = cli("merge", "half", "--out", "merged")
    assert merged.code == 0, merged.err
    assert not [warning for warning in recwarn if "dtype" in str(warning.message)]


@pytest.mark.slow
def test_two_processes_fill_one_cache_and_resume_with_the_same_bytes(prepared: Cli, commands: Commands) -> None:
    commands.know("tests.pipelines")
    settings = "text-to-image={caption_dropout: 0.5, validation_prompts: [a, a cat, a dog]}"
    words = ("train", "r.yaml", settings, "--out", "run", "--quiet")
    result = together(commands, *words)
    assert result.code == 0, result.err
    assert is_on(Path("run/pictures/step-000004.png"), generated(prepared, "run", "a cat"))  # of the second process
    shutil.copytree("run", "whole")
    shutil.rmtree(RunFolder(Path("run")).latest_checkpoint() or "")
    Path("run", "adapter.safetensors").unlink()
    assert together(commands, *words, "--resume", "auto").code == 0
    assert Path("run", "adapter.safetensors").read_bytes() == Path("whole", "adapter.safetensors").read_bytes()
    told = json.loads(Path("run", "eval.json").read_text())["metrics"]["loss"]
    assert prepared("eval", "run", "--json").json()["metrics"]["loss"] == pytest.approx(told, abs=1e-6)


@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_other_images_are_dealt_to_the_sizes_of_an_epoch(count: int) -> None:
    sizes = [(8, 32)] + 9 * [(16, 16)] + 5 * [(32, 8)]
    found = dealt(count, sizes)
    assert found.keys() == set(sizes)
    assert {number for own in found.values() for number in own} == set(range(count))
    assert sum(map(len, found.values())) <= count + 2  # only where a size would have none, is one in two sizes
    if count == 100:
        assert [len(found[size]) for size in ((8, 32), (16, 16), (32, 8))] == [6, 60, 34]


@pytest.mark.slow
def test_other_images_in_every_batch_preserve_what_the_model_knows(
    prepared: Cli, folders: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("known").mkdir()
    for number, size in enumerate(((16, 16), (30, 20), (8, 40))):
        Image.new("RGB", size, (80 * number, 0, 0)).save(Path("known", f"{number}.png"))
    Path("known", "bad.png").write_text("no image")
    put, encoded = Cache.put, []
    monkeypatch.setattr(Cache, "put", lambda cache, key, value: encoded.append(key) or put(cache, key, value))
    seen: list[Batch] = []
    loss = Objective.loss
    monkeypatch.setattr(
        Objective, "loss", lambda own, model, batch, *on: seen.append(batch) or loss(own, model, batch, *on)
    )
    words = ("train", "r.yaml", "text-to-image.prior={images: known, caption: a dog, weight: 0.5}", "--json")
    done = prepared(*words, "--out", "run")
    assert done.code == 0, done.err
    for batch in seen:
        own = len(batch.latents) // 2
        assert batch.beside == own == len(batch.captions) - own
        assert batch.captions[own:] == ["a dog"] * own
    assert "left out 1 of 4 images" in Path("run", "log.txt").read_text()
    images = {key for key in encoded if key.startswith("image")}
    assert len(images) <= len({key.split()[1] for key in images}) + 2  # each in one size, but where a size had none
    shutil.copytree("run", "half")
    shutil.rmtree(RunFolder(Path("half")).latest_checkpoint() or "")
    Path("half", "adapter.safetensors").unlink()
    assert prepared(*words, "--resume", "half").code == 0
    assert Path("half", "adapter.safetensors").read_bytes() == Path("run", "adapter.safetensors").read_bytes()
    plain = prepared("train", "r.yaml", "--dry-run", "--json").json()["memory"]["activations"]
    assert prepared(*words, "--dry-run").json()["memory"]["activations"] > 1.5 * plain


def test_the_loss_of_other_images_has_its_weight(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base = build_pipeline(ModelSection(name=f"diffusers:{folders[FAMILY]}"))
    settings = TextToImageSection(prior=Prior(images="known", weight=0.5))
    objective = Objective(base, settings, lambda captions, size: {})
    monkeypatch.setattr(objective, "errors", lambda *_: torch.tensor([1.0, 3.0, 10.0, 30.0]))
    loss = objective.loss(base.model, Batch(torch.zeros(4, 4, 4, 4), [""] * 4, (8, 8), beside=2), torch.device("cpu"))
    assert loss.item() == 2 + 0.5 * 20


@pytest.mark.slow
def test_offloading_is_for_gpus_and_changes_nothing_elsewhere(prepared: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    class Packed(torch.nn.Parameter):
        pass

    class Moved:
        model_cpu_offload_seq, _exclude_from_cpu_offload = "text_encoder->unet->vae", ["safety_checker"]

        def __init__(self) -> None:
            self.components = {"unet": torch.nn.Linear(2, 2), "vae": torch.nn.Linear(2, 2), "tokenizer": None}

        def enable_model_cpu_offload(self, device: torch.device) -> None:
            self.device = ("in turn", device.type)

        def to(self, device: torch.device) -> Moved:
            self.device = ("whole", device.type)
            return self

    moved, quantised = [], Moved()
    quantised.components["unet"].weight = Packed(torch.ones(2, 2), requires_grad=False)
    with monkeypatch.context() as patch:
        patch.setattr("superlora_cli.models.pipelines.move", lambda part, device: moved.append((part, device.type)))
        for name, offload, found in (("cuda", True, "in turn"), ("cuda", False, "whole"), ("cpu", True, "whole")):
            assert placed(Moved(), torch.device(name), offload=offload).device == (found, name)
        moved.clear()
        assert placed(quantised, torch.device("cuda"), offload=True).device == ("in turn", "cuda")
    assert moved == [(quantised.components["unet"], "cuda")]  # and stays there
    assert quantised.model_cpu_offload_seq == "text_encoder->vae"
    assert quantised._exclude_from_cpu_offload == ["safety_checker", "unet"]
    words = ("train", "r.yaml", "train.steps=1")
    assert prepared(*words, "--out", "plain").code == 0
    assert prepared(*words, "text-to-image.offload=true", "--out", "run").code == 0
    made = [
        prepared("generate", run, "--prompt", "a", "--steps", "2", "--out", f"{run}-images") for run in ("plain", "run")
    ]
    assert [one.code for one in made] == [0, 0]
    assert contents(Path("plain-images", "images")) == contents(Path("run-images", "images"))


def test_weights_that_a_file_lacks_are_not_drawn_at_random(prepared: Cli, folders: dict[str, Path]) -> None:
    shutil.copytree(folders[FAMILY], "broken")
    for part, file in (
        ("text_encoder", "model"),
        ("vae", "diffusion_pytorch_model"),
        ("unet", "diffusion_pytorch_model"),
    ):
        path = Path("broken", part, f"{file}.safetensors")
        tensors = load_file(path)
        name = next(name for name in tensors if name.endswith(".bias"))
        save_file({name + "x" if key == name else key: value for key, value in tensors.items()}, path, {"format": "pt"})
        result = prepared("train", "r.yaml", "model.name=diffusers:broken", "--out", "run")
        assert result.code == 2
        assert f"broken/{part}: cannot be loaded: its files lack 1 tensors" in result.message


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weighs_every_image_by_its_time(
    folders: dict[str, Path], predicts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.training_utils import compute_snr

    base = build_pipeline(ModelSection(name=f"diffusers:{folders[FAMILY]}"))
    objective = Objective(base, TextToImageSection(min_snr=5), lambda captions, size: {})
    objective.noise.predicts = predicts
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(objective, "errors", lambda model, latents, noise, times, *_: seen.append(times) or 1 + times)
    loss = objective.loss(base.model, Batch(torch.zeros(8, 4, 4, 4), ["a"] * 8, (8, 8)), torch.device("cpu"))
    ratio = compute_snr(diffusers.DDPMScheduler.from_config(base.scheduler.config), seen[0])
    divided = {"epsilon": ratio, "sample": 1, "v_prediction": ratio + 1}[predicts]
    torch.testing.assert_close(loss, ((1 + seen[0]) * ratio.clamp(max=5) / divided).mean())


@pytest.mark.slow
def test_recomputing_activations_changes_nothing(prepared: Cli) -> None:
    words = ("train", "r.yaml", "train.steps=2", "--json")
    assert prepared(*words, "--out", "plain").code == 0
    assert prepared(*words, "train.gradient_checkpointing=true", "--out", "recomputed").code == 0
    losses = [[line["loss"] for line in metrics(Path(run)) if "loss" in line] for run in ("plain", "recomputed")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_what_was_computed_is_not_computed_again(
    prepared: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Latents and conditions are read from the cache by a second run; a damaged file is made again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("train", "r.yaml", "train.steps=2", "--json")
    assert prepared(*words, "--out", "one").code == 0
    first = contents(tmp_path / "cache")
    assert len(first) == 4 + 4 + 2 + 1  # latents, captions, no caption at two sizes; and what is known of the images

    from superlora_cli.models.pipelines import PipelineBase

    loaded: list[Any] = []
    whole = PipelineBase.pipeline
    monkeypatch.setattr(PipelineBase, "pipeline", lambda base: loaded.append(base) or whole(base))
    assert prepared(*words, "--out", "two").code == 0
    assert not loaded
    for name in [name for name in first if "latents" in name][:3]:
        (tmp_path / "cache" / name).write_bytes(b"damaged")
    assert prepared(*words, "--out", "three").code == 0
    assert len(loaded) == 1
    assert contents(tmp_path / "cache") == first
    adapters = {Path(run, "adapter.safetensors").read_bytes() for run in ("one", "two", "three")}
    assert len(adapters) == 1


def test_a_file_of_the_cache_under_anothers_name_counts_as_missing(folders: dict[str, Path], tmp_path: Path) -> None:
    cache = Cache(folders[FAMILY], "unet")
    for key in ("one", "other"):
        cache.put(key, {"latents": torch.ones(2)})
    cache.file("one").replace(cache.file("other"))
    again = Cache(folders[FAMILY], "unet")
    assert not again.has("one")
    assert not again.has("other")


def test_what_is_too_large_to_be_held_leaves_the_memory_to_others(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("superlora_cli.tasks.text_to_image.cache.HELD", 16)
    cache = Cache(folders[FAMILY], "unet")
    for key, count in (("large", 5), ("one", 2), ("other", 2), ("more", 1)):
        cache.put(key, {"latents": torch.ones(count)})
        assert cache.has(key)
    for key in ("one", "other"):
        cache.file(key).unlink()
        assert torch.equal(cache.get(key)["latents"], torch.ones(2))
    for key in ("large", "more"):
        cache.file(key).unlink()
        assert not cache.has(key)


def test_what_was_not_used_for_long_makes_room_for_what_was(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one, other = (Cache(folders[FAMILY], part) for part in ("unet", "vae"))
    for cache in (one, other):
        for key in ("new", "old", "read"):
            cache.put(key, {"latents": torch.ones(2)})
            if key != "new":
                os.utime(cache.file(key), (0, 0))
        assert cache.has("read")
    one.make_room()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 6
    monkeypatch.setattr("superlora_cli.tasks.text_to_image.cache.ROOM", 1)
    one.make_room()
    kept = {cache.file(key) for cache in (one, other) for key in ("new", "read")}  # more than there is room for
    assert set((tmp_path / "cache").rglob("*.safetensors")) == kept


def test_another_pipeline_has_its_own_cache(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[FAMILY], tmp_path / "copy")
    before = Cache(tmp_path / "copy", "unet").path
    (tmp_path / "copy" / "unet" / "config.json").write_text("{}")
    assert Cache(tmp_path / "copy", "unet").path == before
    (tmp_path / "copy" / "vae" / "config.json").write_text("{}")
    assert Cache(tmp_path / "copy", "unet").path != before


def test_conditions_come_back_from_the_cache_as_they_were(folders: dict[str, Path], tmp_path: Path) -> None:
    cache = Cache(folders[FAMILY], "unet")
    value = {"a": torch.ones(2), "b": {"c": torch.zeros(1, 3), "d": None, "e": {}}, "f": False}
    value |= {"g": [torch.full((2,), float(number)) for number in range(11)], "h": [[[1, 2, 3]]], "i": []}
    assert not cache.has("key")
    cache.put("key", value)
    for one in (cache, Cache(folders[FAMILY], "unet")):
        found = one.get("key")
        assert torch.equal(found["a"], value["a"])
        assert found["b"]["d"] is None
        assert found["b"]["e"] == {}
        assert found["f"] is False
        assert [one[0].item() for one in found["g"]] == list(range(11))
        assert (found["h"], found["i"]) == ([[[1, 2, 3]]], [])


def test_every_bucket_is_in_the_area_and_the_nearest_is_taken() -> None:
    for width, height in buckets(512, 64):
        assert width % 64 == height % 64 == 0
        assert width * height <= 512 * 512
    assert nearest((512, 512), 512, 64) == (512, 512)
    assert nearest((1, 1000), 512, 64) == (256, 1024)
    wide, high = nearest((1600, 900), 1024, 64), nearest((900, 1600), 1024, 64)
    assert wide == (high[1], high[0])


def test_cropping_keeps_the_middle() -> None:
    image = Image.new("RGB", (64, 16), "black")
    image.paste((255, 255, 255), (24, 0, 40, 16))
    assert cropped(image, (16, 16)).min() == 1
    assert cropped(image, (16, 4)).shape == (3, 4, 16)


def test_batches_are_of_one_size_and_every_image_is_seen_in_an_epoch() -> None:
    samples = [Seen(number, (16, 16) if number % 3 else (8, 24), "", f"{number}") for number in range(11)]
    samples = repeated(samples, [f"{number}.png" for number in range(11)], {"1*": 3, "*": 2})
    assert [sample.number for sample in samples].count(1) == 3
    for number in range(2):
        found = epoch(samples, 4, 0, number)
        assert sorted(sample.number for batch in found for sample in batch) == sorted(
            sample.number for sample in samples
        )
        assert all(len({sample.size for sample in batch}) == 1 for batch in found)
    assert epoch(samples, 4, 0, 0) != epoch(samples, 4, 0, 1)


def test_the_repeats_that_a_note_names_are_those_of_the_folders() -> None:
    names = ["a.png", "1_cat/b.png", "12_a [dog]/c.png", "deep/3_fish/d.png", "4/e.png"]
    (note,) = not_repeated(names, {})
    repeats = json.loads(note.partition("text-to-image.repeats: ")[2])
    samples = [Seen(number, (16, 16), "", f"{number}") for number in range(len(names))]
    assert [repeated(samples, names, repeats).count(sample) for sample in samples] == [1, 1, 12, 3, 1]
    assert not list(not_repeated(names, {"*": 2}))
    assert not list(not_repeated(names, repeats))


def test_other_images_are_judged_whole(prepared: Cli, data: Path) -> None:
    assert prepared("train", "r.yaml", "train.steps=1", "--out", "run", "--json").code == 0
    shutil.copytree(data, "more")
    Path("more", "e.txt").write_text("a fifth")
    found = prepared("eval", "run", "data.name=more", "data.validation=0.5", "--json").json()
    assert found["n"] == 5
    assert "judged by all 5 images of more, which has no test part" in found["notes"]


def test_repeats_and_epochs_give_the_steps(prepared: Cli) -> None:
    words = ("train", "r.yaml", "train.steps=null", "train.epochs=2", "train.checkpoint_every=null", "--json")
    found = prepared(*words, "text-to-image.buckets=false", "text-to-image.repeats={'a.*': 5}", "--out", "run").json()
    assert found["steps"] == 2 * 4  # 4 images, of which one five times, are four batches of two
    assert json.loads(Path("run", "run.json").read_text())["images"]["train"] == 4
