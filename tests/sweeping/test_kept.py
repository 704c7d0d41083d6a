"""A worker reads base and data once, and every run is what it is on its own."""

from __future__ import annotations

from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file
from timm.models import save_for_hf

from superlora_cli.cache import STORE, once
from superlora_cli.errors import MismatchError
from superlora_cli.models import repeated
from superlora_cli.models.embedded import ASSETS
from superlora_cli.models.repeated import build_seeded
from superlora_cli.recipe.schema import HeadRows, ModelSection
from superlora_cli.sweeping.folder import SweepFolder
from superlora_cli.sweeping.local import each
from superlora_cli.sweeping.plan import load_plan
from tests.conftest import run_cli
from tests.data.conftest import write_folder
from tests.sweeping.conftest import Write

ARGUMENTS = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 16, "patch_size": 4}
VIT = "vit_tiny_patch16_224"


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched on, and empty."""
    monkeypatch.setattr(STORE, "keeps", True)
    monkeypatch.setattr(STORE, "kinds", {})


@pytest.mark.usefixtures("keeping")
def test_the_most_recently_used_is_kept() -> None:
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key * 2

    for key in "abacab":
        assert once("words", key, partial(make, key), most=2) == key * 2
    assert "".join(made) == "abcb"
    assert once("others", "a", lambda: "of another kind", most=2) == "of another kind"


def test_a_process_with_a_single_run_caches_nothing() -> None:
    assert [once("words", "a", partial(str, text), most=2) for text in "xy"] == ["x", "y"]
    assert not STORE.kinds


def checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> ModelSection:
    """A file of random weights."""
    model = timm.create_model(VIT, num_classes=4, **ARGUMENTS).to(dtype)
    save_file(model.state_dict(), folder / "base.safetensors")
    return ModelSection(name=VIT, checkpoint=str(folder / "base.safetensors"), kwargs=ARGUMENTS)


def rows_of_a_head(folder: Path) -> ModelSection:
    """Two of the four classes of a file."""
    own = {"head": HeadRows(select=[2, 0]), "kwargs": {**ARGUMENTS, "num_classes": 4}}
    return checkpoint(folder).model_copy(update=own)


def in_timms_folder(folder: Path) -> ModelSection:
    save_for_hf(timm.create_model(VIT, num_classes=4, **ARGUMENTS), folder, model_args=ARGUMENTS)
    return ModelSection(name=f"local-dir:{folder}")


def in_diffusers_folder(folder: Path) -> ModelSection:
    sizes = {"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    UNet2DModel(**sizes, **kinds).save_pretrained(folder)
    return ModelSection(name="diffusers", kwargs={"path": str(folder)})


BASES: dict[str, Any] = {
    "embedded": lambda _: ModelSection(name="glyphs_vit"),
    "embedded, its own head": lambda _: ModelSection(name="glyphs_vit", head="frozen"),
    "embedded U-Net": lambda _: ModelSection(name="glyphs_unet"),
    "file": checkpoint,
    "file in bfloat16": lambda folder: checkpoint(folder, torch.bfloat16),
    "file, rows of its head": rows_of_a_head,
    "timm's loading": in_timms_folder,
    "diffusers' loading": in_diffusers_folder,
}


@pytest.mark.slow
@pytest.mark.usefixtures("keeping")
@pytest.mark.parametrize("classes", [4, 7])
@pytest.mark.parametrize("kind", BASES)
def test_a_base_is_read_once_and_gives_every_seed_the_same_result_as_alone(
    kind: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)  # a file may hold what a run's seed draws
    section = BASES[kind](tmp_path)
    alone = {}
    monkeypatch.setattr(STORE, "keeps", False)
    for seed in (0, 1):
        built = build_seeded(section, seed, classes=classes)
        alone[seed] = built.model.state_dict(), torch.get_rng_state(), built.trained_head
    monkeypatch.setattr(STORE, "keeps", True)
    read: list[ModelSection] = []

    def build(section: ModelSection, **how: Any) -> Any:
        if section.pretrained or section.checkpoint:
            read.append(section)
        return unwrapped(section, **how)

    unwrapped = repeated.build
    monkeypatch.setattr(repeated, "build", build)
    for seed in (0, 1, 0, 1):
        torch.manual_seed(99)
        built = build_seeded(section, seed, classes=classes)
        state, behind, head = alone[seed]
        assert built.trained_head == head
        assert torch.equal(torch.get_rng_state(), behind)
        found = built.model.state_dict()
        assert {name: tensor.dtype for name, tensor in found.items()} == {name: t.dtype for name, t in state.items()}
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
        for tensor in found.values():  # what a run does to its base
            tensor.zero_()
        built.model.requires_grad_(False)
        built.model.register_module("adapter", torch.nn.Linear(2, 2))
    assert len(read) == 1


@pytest.mark.usefixtures("keeping")
def test_a_checkpoint_that_has_changed_is_read_again(tmp_path: Path) -> None:
    section = checkpoint(tmp_path)
    build_seeded(section, 0, classes=4)
    save_file({"other": torch.zeros(3)}, tmp_path / "base.safetensors")
    with pytest.raises(MismatchError):
        build_seeded(section, 0, classes=4)


@pytest.mark.usefixtures("keeping")
def test_few_bases_and_seeds_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "SEEDS", 3)
    for name in ("glyphs_vit", "digits_classifier", "glyphs_unet"):
        for seed in range(4):
            build_seeded(ModelSection(name=name), seed, classes=10)
    assert {kind: len(kept) for kind, kept in STORE.kinds.items()} == {"base": 2, "drawn": 3}


RECIPE = """\
task: classification
model:
  name: vit_tiny_patch16_224
  checkpoint: base.safetensors
  kwargs: {img_size: 16, patch_size: 4, embed_dim: 64, depth: 6, num_heads: 4, drop_path_rate: 0.3}
data: {name: images, image_size: 16, validation: 0.2, augment: crop_flip}
adapter: {method: lora, targets: [q, v], rank: 1}
train: {steps: 3, batch_size: 4, optimizer: {name: SGD, lr: 0.1}, checkpoint_every: 3}
eval: {every: 3}
"""
SWEEP = "recipe: recipe.yaml\ngrid: {adapter.rank: [1, 2]}\nseeds: [0, 1]\n"


@pytest.mark.slow
def test_a_worker_reads_base_and_data_once_and_trains_the_bytes_of_single_runs(write: Write) -> None:
    Path("recipe.yaml").write_text(RECIPE)
    Path("base.safetensors").write_bytes((ASSETS / "glyphs_vit.safetensors").read_bytes())
    write_folder(Path("images"))
    folder = SweepFolder(Path("out"), load_plan(write(SWEEP)))
    folder.prepare()
    jobs = [folder.job(run) for run in folder.plan.checked()]
    events = each(deque(jobs), "tests.sweeping.counting:carry_out", workers=1, devices=(), log=Path("out/workers.log"))
    ended = [event.outcome for event in events if event.outcome]
    assert [outcome.status for outcome in ended] == ["completed"] * 4, ended
    assert sorted(Path("reads.txt").read_text().split()) == ["base", "images"]
    for job in jobs:
        alone = Path("alone") / job.id
        result = run_cli("train", Path(job.folder) / "recipe.yaml", "--out", alone, "--quiet")
        assert result.code == 0, result.err
        assert (alone / "adapter.safetensors").read_bytes() == Path(job.folder, "adapter.safetensors").read_bytes()
