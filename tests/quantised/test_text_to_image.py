"""Quantised pipelines from end to end: train, resume, evaluate, generate, merge."""

from __future__ import annotations

import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from superlora_cli.adapter.packed import is_packed
from superlora_cli.models.pipelines import build_pipeline
from superlora_cli.models.quantising import SCHEMES
from superlora_cli.opening.build import build_from_file
from superlora_cli.recipe.schema import ModelSection
from superlora_cli.training.run import RunFolder
from tests import pipelines
from tests.conftest import Cli
from tests.quantised.nearness import nearly
from tests.quantised.sizes import sizes

ON_A_CPU = ["torchao-8bit"]  # what diffusers can do there
EACH = pytest.mark.parametrize("scheme", SCHEMES if torch.cuda.is_available() else ON_A_CPU)
ENCODERS = {"StableDiffusion": "text_encoder.*.q_proj", "Flux": r"re:text_encoder_2\..*\.SelfAttention\.v"}
FAMILY = pytest.mark.parametrize("family", ENCODERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines; read only."""
    root = tmp_path_factory.mktemp("pipelines")
    return {name: pipelines.saved(name, root / name) for name in ENCODERS}


@pytest.fixture
def prepared(cli: Cli, tmp_path: Path) -> Cli:
    """Runs commands in a folder with three captioned images."""
    (tmp_path / "images").mkdir()
    draw = np.random.RandomState(0)
    for name in ("a red seven", "a dog", "cat"):
        file = tmp_path / "images" / f"{name}.png"
        Image.fromarray(draw.randint(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
        file.with_suffix(".txt").write_text(name)
    return cli


def recipe(pipeline: Path, encoder: str, scheme: str = "torchao-8bit") -> str:
    return (
        f"task: text-to-image\nmodel: {{name: 'diffusers:{pipeline}', quantize: {scheme}}}\n"
        "data: {name: images, image_size: 16, validation: 0}\n"
        f"adapter: {{method: lora, rank: 2, targets: [q, v, '{encoder}']}}\n"
        "train: {steps: 3, batch_size: 2, checkpoint_every: 2, threads: 1, log_every: 1}\n"
    )


@pytest.mark.slow
@EACH
@FAMILY
def test_a_run_from_training_to_merged_images(
    family: str, scheme: str, folders: dict[str, Path], prepared: Cli
) -> None:
    Path("r.yaml").write_text(recipe(folders[family], ENCODERS[family], scheme))
    change = ("text-to-image.offload=true",)  # on a GPU
    done = prepared("train", "r.yaml", *change, "--out", "run", "--json")
    assert done.code == 0, done.err
    shutil.copytree("run", "half")
    shutil.rmtree(RunFolder(Path("half")).latest_checkpoint() or "")
    Path("half", "adapter.safetensors").unlink()
    assert prepared("train", "r.yaml", *change, "--resume", "half").code == 0
    assert nearly(*(load_file(f"{name}/adapter.safetensors") for name in ("run", "half")))

    built = build_from_file(Path("run", "adapter.safetensors"))
    assert built.adapter is not None
    assert all(is_packed(built.model.get_submodule(target.module)) for target in built.adapter.targets)
    assert any(target.module.startswith("text_encoder") for target in built.adapter.targets)

    judged = prepared("eval", "run", "--json").json()
    assert judged["metrics"]["loss"] == pytest.approx(done.json()["metrics"]["loss"], abs=1e-4)
    words = ("generate", "run", "--prompt", "a red seven", "--steps", "2", "--seed", "5")
    assert prepared(*words, "--out", "made").code == 0
    assert "--scale: needs an adapter that can be merged" in prepared(*words, "--scale", "2", "--out", "x").message
    assert "its base is quantised" in prepared("merge", "run", "--out", "merged").message
    merged = prepared("merge", "run", "--out", "merged", "--dequantise", "--json")
    assert merged.code == 0, merged.err
    assert merged.json()["dequantised"] == f"from {scheme} to float32"
    assert merged.json()["max_abs_error"] < (0.1 if SCHEMES[scheme].rounds_inputs else 1e-4)
    pipeline = getattr(diffusers, type(pipelines.made(family)).__name__).from_pretrained("merged")
    noise = torch.Generator().manual_seed(5)
    image = pipeline("a red seven", width=16, height=16, num_inference_steps=2, generator=noise, output_type="pt")
    ours = np.array(Image.open(next(Path("made", "images").iterdir()))).astype(int)
    theirs = (image.images[0].permute(1, 2, 0) * 255).round().numpy().astype(int)
    assert np.abs(ours - theirs).max() <= 3  # of 255


@EACH
@FAMILY
def test_a_dry_run_has_the_layers_and_the_bytes_of_the_real_base(
    family: str, scheme: str, folders: dict[str, Path]
) -> None:
    section = ModelSection(name=f"diffusers:{folders[family]}", quantize=scheme)
    real, shapes = (build_pipeline(section, weights=weights) for weights in (True, False))
    for base in (real, shapes):
        base.include([ENCODERS[family]])
    assert sizes(real.model) == sizes(shapes.model)
    assert len(sizes(real.model)) > 20


def test_what_cannot_be_quantised_is_one_line(folders: dict[str, Path], prepared: Cli) -> None:
    Path("r.yaml").write_text(recipe(folders["Flux"], ENCODERS["Flux"]))
    vae = prepared("train", "r.yaml", "task=autoencoder", "model.kwargs={component: vae}", "adapter.targets=[q]",
                   "--dry-run")  # fmt: skip
    assert "model.quantize: does not apply to an autoencoder" in vae.message
    if not torch.cuda.is_available():
        refused = prepared("train", "r.yaml", "model.quantize=bitsandbytes-4bit", "--out", "run")
        assert refused.code == 2
        assert "cannot be loaded: No GPU found" in refused.message
