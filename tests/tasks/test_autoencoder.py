"""The autoencoder of a pipeline: trained, resumed, merged into its pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from superlora_cli.models.embedded import ASSETS
from superlora_cli.training.run import RunFolder
from tests.conftest import Cli

RECIPE = """
task: autoencoder
model: {name: glyphs_text, kwargs: {component: vae}}
data: {name: images, validation: 0}
adapter: {method: lora, rank: 2, targets: ["encoder.*conv*", "decoder.*conv*"]}
train: {steps: 4, batch_size: 2, checkpoint_every: 2, threads: 1}
"""


@pytest.fixture
def prepared(cli: Cli, tmp_path: Path) -> Cli:
    """Runs commands in a folder with `r.yaml` and four images without captions."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "images").mkdir()
    for index in range(4):
        pixels = np.random.RandomState(index).randint(0, 256, (20, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    return cli


def test_an_adapter_on_an_autoencoder_from_training_to_a_merged_pipeline(prepared: Cli) -> None:
    done = prepared("train", "r.yaml", "--out", "run", "--json")
    assert done.code == 0, done.err
    before, after = (done.json()["metrics"][name] for name in ("loss_before", "loss"))
    assert before > after

    shutil.copytree("run", "half")
    shutil.rmtree(RunFolder(Path("half")).latest_checkpoint() or "")
    Path("half", "adapter.safetensors").unlink()
    assert prepared("train", "r.yaml", "--resume", "half", "--json").code == 0
    assert Path("half", "adapter.safetensors").read_bytes() == Path("run", "adapter.safetensors").read_bytes()

    assert prepared("eval", "run", "--json").json()["metrics"]["loss"] == pytest.approx(after, abs=1e-6)
    merged = prepared("merge", "run", "--out", "merged", "--json")
    assert merged.code == 0, merged.err
    assert merged.json()["max_abs_error"] < 1e-5
    vae = diffusers.StableDiffusionPipeline.from_pretrained("merged").vae
    errors = []
    for file in sorted(Path("images").iterdir()):
        square = Image.open(file).resize((16, 16), Image.Resampling.LANCZOS, box=(6, 0, 26, 20))
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            errors.append((vae.decode(vae.encode(pixels).latent_dist.mode()).sample - pixels).square().mean().item())
    assert np.mean(errors) == pytest.approx(after, rel=1e-4)


def test_the_loss_is_that_of_the_paper(prepared: Cli) -> None:
    from superlora_cli.recipe.load import load_recipe
    from superlora_cli.tasks.autoencoder.task import Autoencoder

    vae = diffusers.AutoencoderKL.from_pretrained(ASSETS / "glyphs_text", subfolder="vae")
    recipe = load_recipe("r.yaml", ["autoencoder={l1: 0.5, kl: 0.01}"])
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(1)
    found = Autoencoder.objective(vae, recipe, (images, torch.zeros(3)))
    torch.manual_seed(1)
    spread = vae.encode(images).latent_dist
    errors = vae.decode(spread.mean + spread.std * torch.randn(3, 4, 8, 8)).sample - images
    divergence = (spread.mean**2 + spread.var - 1 - spread.logvar).mean() / 2
    expected = errors.square().mean() + 0.5 * errors.abs().mean() + 0.01 * divergence
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.kwargs={}"], "is a base for text-to-image, not for autoencoder"),
        (["model.kwargs.component=decoder"], "no component 'decoder' that can be trained"),
        (["model.kwargs.component=text_encoder"], "cannot train text_encoder (unet or vae or [unet, text_encoder])"),
        (["model.kwargs.component=[unet, vae]"], "cannot train unet with vae"),
        (["model.kwargs.component=[]"], "cannot train nothing"),
        (["task=text-to-image", "data.caption=a"], "is a base for autoencoder, not for text-to-image"),
    ],
)
def test_what_is_wrong_is_one_line(prepared: Cli, words: list[str], said: str) -> None:
    result = prepared("train", "r.yaml", *words, "--out", "run")
    assert result.code == 2
    assert said in result.message
