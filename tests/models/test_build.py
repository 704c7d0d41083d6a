"""Bases from where people keep them: the hub's cache, a folder, a file, and what is said where there is none."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from timm.models import save_for_hf

from superlora_cli.errors import UsageError
from superlora_cli.models import hub
from superlora_cli.models.build import build
from superlora_cli.recipe.schema import ModelSection
from tests.conftest import Cli

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 16, "patch_size": 4}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A model in timm's own format: config.json and model.safetensors."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **SMALL)
    save_for_hf(model, tmp_path / "saved", model_args=SMALL, safe_serialization=True)
    return tmp_path / "saved", model


def test_a_folder_in_timms_format_is_a_base(saved: tuple[Path, torch.nn.Module]) -> None:
    folder, model = saved
    built = build(ModelSection(name=f"local-dir:{folder}", head="frozen"), classes=None)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(built.model.eval()(images), model.eval()(images))
    fresh = build(ModelSection(name=f"local-dir:{folder}", head="new"), classes=3)
    assert fresh.trained_head == ("head.weight", "head.bias")
    assert fresh.model(images).shape == (2, 3)
    assert torch.equal(fresh.model.state_dict()["blocks.0.attn.qkv.weight"], model.blocks[0].attn.qkv.weight)


def test_a_folder_in_timms_format_is_adapted_from_a_recipe(saved: tuple[Path, torch.nn.Module], cli: Cli) -> None:
    words = (f"model.name=local-dir:{saved[0]}", "model.head=new", "train.steps=2", "eval.every=1", "train.threads=1")
    result = cli("train", "quickstart", *words, "--out", "run", "--json").json()
    assert result["params"]["head"] == 10 * 33
    assert cli("eval", "run", "--json").json()["metrics"]["accuracy"] == result["metrics"]["accuracy"]


@pytest.mark.parametrize("drop_path", [0.0, 0.3])
def test_arguments_go_to_timm_under_its_own_names(drop_path: float) -> None:
    section = ModelSection(
        name="vit_tiny_patch16_224", pretrained=False, kwargs={**SMALL, "drop_path_rate": drop_path, "depth": 2}
    )
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in build(section, classes=4).model.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0.0, drop_path])


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and an empty cache."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("Network is unreachable")

    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k"])
def test_without_a_network_a_missing_base_is_one_line_at_once(name: str, cli: Cli, tmp_path: Path) -> None:
    started = time.monotonic()
    result = cli("train", "quickstart", f"model.name={name}", "model.head=new")
    assert time.monotonic() - started < 20  # it was a minute: the hub's library retries
    assert result.code == 2
    assert f"model.name: {name}: not in the cache {tmp_path / 'cache'}, and the hub cannot be reached" in result.message
    assert "model.checkpoint=FILE" in result.message
    assert not list(Path("runs").glob("*/*")) if Path("runs").exists() else True


@pytest.mark.usefixtures("offline")
def test_the_hubs_library_is_left_as_it_was() -> None:
    before = constants.HF_HUB_OFFLINE
    with hub.cache_if_unreachable() as reachable:
        assert not reachable
        assert constants.HF_HUB_OFFLINE
    assert before == constants.HF_HUB_OFFLINE


def test_a_pinned_revision_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo_id: str, filename: str, revision: str | None = None, **_: Any) -> str:
        asked.append((repo_id, revision))
        raise OSError("stop here")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    monkeypatch.setattr(hub, "_answers", lambda endpoint: True)
    with pytest.raises(UsageError, match="stop here"):
        build(ModelSection(name="hf-hub:someone/model@v1.2"), classes=3)
    assert asked[0] == ("someone/model", "v1.2")


def test_a_folder_that_holds_no_model_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config.json and model.safetensors, as timm saves them"):
        build(ModelSection(name=f"local-dir:{tmp_path}"), classes=3)
