"""Results of pretraining become the shipped bases: their weights, and how they were made."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from superlora_cli.commands import ship
from superlora_cli.data.captioned_glyphs import render_captioned
from superlora_cli.models.embedded import ASSETS
from tests.conftest import Cli

FEW = ("data.train_images=40", "data.eval_images=8", "train.steps=1", "train.threads=1")


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped pipeline and of its provenance, in the place of the package's."""
    found = tmp_path / "assets"
    shutil.copytree(ASSETS / "glyphs_text", found / "glyphs_text")
    shutil.copy(ASSETS / "glyphs_text.json", found)
    monkeypatch.setattr(ship, "ASSETS", found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "parts"), [("pretrain_glyphs_text_vae", ("vae",)), ("pretrain_glyphs_text", ("unet", "text_encoder"))]
)
def test_trained_parts_of_a_pipeline_are_shipped(recipe: str, parts: tuple[str, ...], cli: Cli, assets: Path) -> None:
    assert cli("train", recipe, *FEW, "--out", "run").code == 0
    about = json.loads((assets / "glyphs_text.json").read_text())
    assert ship.ship(Path("run")) == assets / "glyphs_text"
    trained = load_file("run/model.safetensors")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(assets / "glyphs_text")
    for part in ("vae", "unet", "text_encoder"):
        old, new = (
            load_file(next((folder / "glyphs_text" / part).glob("*.safetensors"))) for folder in (ASSETS, assets)
        )
        if part in parts:
            prefix = "text_encoder." if part == "text_encoder" else ""
            assert all(torch.equal(value, trained[prefix + name]) for name, value in new.items())
        assert new.keys() == old.keys()
        assert any(not torch.equal(new[name], old[name]) for name in old) == (part in parts)
    told = json.loads((assets / "glyphs_text.json").read_text())
    others = about["parts"].keys() - {", ".join(parts)}
    assert {name: told["parts"][name] for name in others} == {name: about["parts"][name] for name in others}
    assert told["parts"][", ".join(parts)]["made_by"] == f"superlora train recipes/{recipe}.yaml"
    file = assets / "glyphs_text" / parts[0] / "diffusion_pytorch_model.safetensors"
    name = file.relative_to(assets / "glyphs_text").as_posix()
    assert told["sha256"][name] == hashlib.sha256(file.read_bytes()).hexdigest() != about["sha256"][name]
    with torch.no_grad():
        latents = pipeline.vae.encode(render_captioned("train", 200)[0].float() / 127.5 - 1).latent_dist.mean
    assert (latents * pipeline.vae.config.scaling_factor).std().item() == pytest.approx(1, abs=0.05)
