"""`superlora generate`: images that can be told apart, repeated and counted, and nothing of anybody else's touched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from superlora_cli.adapter import store
from superlora_cli.adapter.attach import attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.commands import generate as task
from superlora_cli.errors import MismatchError
from superlora_cli.models.base import Base
from superlora_cli.models.targets import expand
from superlora_cli.opening.build import Built
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.weights.small import safetensors_bytes
from tests.conftest import Cli, contents
from tests.generation.standin import StandIn, stand_in

RECIPE = {
    "task": "diffusion",
    "model": {"name": "glyphs_unet", "head": "frozen"},
    "data": {"name": "digits"},
    "train": {"steps": 1, "optimizer": {"lr": 0.1}},
}
FAST = ("--num", 7, "--steps", 2)
Models = list[StandIn]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    """Every file is built as the stand-in, with the adapter that is in it; the models that were built."""
    built: Models = []

    def build_from_file(path: Path, overrides: Any = (), *, allow_mismatch: bool = False) -> Built:
        stored = store.load(path)
        recipe = recipe_from_dict(dict(stored.recipe), str(path), overrides)
        model = stand_in()
        base = Base(model, "standin", {}, 8, (0.5,) * 3, (0.5,) * 3)
        targets = expand(model, stored.patterns)
        if not allow_mismatch:
            store.check_base(model, targets, stored, where=str(path))
        adapter = attach(model, targets, stored.config)
        store.restore(adapter, stored, where=str(path))
        built.append(model)
        return Built(recipe, base, adapter, ("", ""), True, stored.classes)

    monkeypatch.setattr(task, "build_from_file", build_from_file)
    return built


def write_adapter(path: Path, *, scale: float = 0.5, classes: tuple[str, ...] = (), **changes: Any) -> Path:
    """An adapter file of q and v of the stand-in, with a ΔW that is not zero."""
    model = stand_in()
    targets = expand(model, ["q", "v"])
    sha256, dtype = store.digest_base(model, targets)
    adapter = attach(model, targets, AdapterConfig.from_knobs("lorta", order=3, rank=2))
    generator = torch.Generator().manual_seed(0)
    factors = {name: scale * torch.randn(f.shape, generator=generator) for name, f in adapter.factors.items()}
    recipe = recipe_from_dict({**RECIPE, "adapter": {"method": "lorta"}, **changes}, "test").to_dict()
    stored = store.StoredAdapter(
        adapter.config, ("q", "v"), store.digest_targets(targets),
        {"name": "glyphs_unet", "sha256": sha256, "dtype": dtype}, recipe, {}, factors, classes=classes,
    )  # fmt: skip
    stored.save(path, force=True)
    return path


@pytest.fixture
def file(models: Models, cli: Cli) -> Path:
    """A diffusion adapter in the current folder."""
    return write_adapter(Path("adapter.safetensors"))


def pngs(folder: Path | str) -> dict[str, bytes]:
    return contents(Path(folder, "images"))


def test_images_are_named_by_index_and_class_and_spread_evenly(file: Path, cli: Cli) -> None:
    done = cli("generate", file, "--out", "out", *FAST, "--classes", "0,3,7", "--json").json()
    assert done.keys() >= {"images", "grid", "num", "seed"}
    assert (done["images"], done["grid"], done["num"], done["seed"]) == ("out/images", "out/grid.png", 7, 0)
    assert {path.name for path in Path("out").iterdir()} == {"images", "grid.png", "manifest.json"}
    assert sorted(pngs("out")) == [f"0000{i}_{[0, 3, 7][i % 3]}.png" for i in range(7)]
    for name in pngs("out"):
        image = Image.open(Path("out/images", name))
        assert (image.size, image.mode) == ((8, 8), "RGB")


def test_the_manifest_says_how_to_make_the_images_again(file: Path, cli: Cli) -> None:
    words = ("--sampler", "dpm++", "--guidance", "0.5", "--seed", "4")
    cli("generate", file, "--out", "out", *FAST, *words)
    manifest = json.loads(Path("out/manifest.json").read_text())
    expected = {"sampler": "dpm++", "guidance": 0.5, "seed": 4, "num": 7, "steps": 2, "complete": True}
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["adapter"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert manifest["images"] == {name: name[6:-4] for name in pngs("out")}
    assert manifest["classes"] == [str(number) for number in range(10)]
    assert manifest["noise"] == {"steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    assert str(Path.cwd()) not in json.dumps(manifest)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_the_same_seed_is_the_same_bytes_whatever_the_batch_size(sampler: str, file: Path, cli: Cli) -> None:
    def made(out: str, *words: object) -> dict[str, bytes]:
        assert cli("generate", file, "--out", out, "--num", 20, "--steps", 4, "--sampler", sampler, *words).code == 0
        return contents(Path(out))

    one = made("one")
    assert made("again") == made("small", "--batch-size", 3) == one
    made("other", "--seed", 1)
    other, one = pngs("other"), pngs("one")
    assert all(other[name] != one[name] for name in one)


def test_fewer_images_are_the_first_of_more(file: Path, cli: Cli) -> None:
    cli("generate", file, "--out", "few", "--num", 3, "--steps", 2)
    cli("generate", file, "--out", "many", "--num", 18, "--steps", 2)
    assert pngs("few").items() <= pngs("many").items()


def test_sampling_takes_merged_weights(models: Models, file: Path, cli: Cli) -> None:
    cli("generate", file, "--out", "out", *FAST)
    model = models[0].cpu()
    plain = stand_in()
    assert not hasattr(model, "superlora")
    assert {type(module) for module in model.modules()} == {type(module) for module in plain.modules()}
    assert not torch.equal(model.q.weight, plain.q.weight)
    assert torch.equal(model.k.weight, plain.k.weight)
    cli("generate", write_adapter(Path("other.safetensors"), scale=0.3), "--out", "other", *FAST)
    assert pngs("out") != pngs("other")


def test_every_image_is_asked_for_by_its_class_plus_1(models: Models, file: Path, cli: Cli) -> None:
    cli("generate", file, "--out", "out", *FAST, "--classes", "9,2", "--guidance", 0)
    assert models[0].calls[0][2][:7] == [10, 3, 10, 3, 10, 3, 10]


def test_classes_have_the_names_of_the_data(models: Models, cli: Cli) -> None:
    file = write_adapter(Path("adapter.safetensors"), classes=("cat", "dog", "wild horse"))
    done = cli("generate", file, "--out", "all", *FAST, "--json").json()
    assert done["classes"] == ["cat", "dog", "wild horse"]  # of ten that the base knows, those it was adapted to
    assert set(pngs("all")) >= {"00000_cat.png", "00002_wild_horse.png", "00003_cat.png"}
    assert json.loads(Path("all/manifest.json").read_text())["images"]["00002_wild_horse.png"] == "wild horse"
    done = cli("generate", file, "--out", "some", *FAST, "--classes", "dog, 0,5", "--json").json()
    assert done["classes"] == ["dog", "cat", "5"]


def test_the_folder_is_a_run_too(file: Path, cli: Cli) -> None:
    Path("run").mkdir()
    file.rename("run/adapter.safetensors")
    shown = cli("generate", "run", "--out", "out", *FAST)
    assert shown.code == 0
    for words in ("wrote out/images", "out/grid.png", "glyphs_unet", "ddim, 2 steps, guidance 1.8, seed 0"):
        assert words in shown.out


def test_a_folder_that_is_not_empty_is_left_alone(file: Path, cli: Cli) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    result = cli("generate", file, "--out", "out", *FAST)
    assert result.code == 2
    assert "--force" in result.message
    assert contents(Path("out")) == {"mine.txt": b"mine"}
    error = cli("generate", file, "--out", file, *FAST, "--json").json()["error"]
    assert (error["code"], error["message"]) == (2, "is not a folder")


def test_force_replaces_generated_images_and_nothing_else(file: Path, cli: Cli) -> None:
    cli("generate", file, "--out", "out", "--num", 12, "--steps", 2)
    for mine in ("99999_mine.png", "mine.txt"):
        Path("out/images", mine).write_bytes(b"mine")
    listed = json.loads(Path("out/manifest.json").read_text())
    listed["images"] |= {"../adapter.safetensors": "0", "mine.txt": "0"}  # a manifest cannot be made to delete those
    Path("out/manifest.json").write_text(json.dumps(listed))
    assert cli("generate", file, "--out", "out", *FAST, "--seed", 3, "--force").code == 0
    cli("generate", file, "--out", "fresh", *FAST, "--seed", 3)
    assert pngs("out") == pngs("fresh") | {"99999_mine.png": b"mine", "mine.txt": b"mine"}
    assert contents(Path("out"))["grid.png"] == contents(Path("fresh"))["grid.png"]
    assert file.exists()


def test_what_a_killed_command_was_writing_is_removed_by_the_next(file: Path, cli: Cli) -> None:
    cli("generate", file, "--out", "out", *FAST)
    right = contents(Path("out"))
    for name in ("images/.00002_2.png.x1y2.tmp", ".grid.png.x1y2.tmp", ".manifest.json.x1y2.tmp"):
        Path("out", name).write_bytes(b"half")
    Path("out/.mine.tmp").write_bytes(b"somebody's")
    assert cli("generate", file, "--out", "out", *FAST, "--force").code == 0
    assert contents(Path("out")) == {**right, ".mine.tmp": b"somebody's"}


def test_a_bare_base_generates_too(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    embedded = task.EMBEDDED["glyphs_vit"]
    monkeypatch.setitem(task.EMBEDDED, "some_unet", replace(embedded, weights="some_unet.safetensors"))
    monkeypatch.setattr(task, "ASSETS", tmp_path)
    recipe = {**RECIPE, "model": {"name": "some_unet", "pretrained": False}}
    Path("some_unet.json").write_text(json.dumps({"recipe": recipe}))
    asked: list[Any] = []

    def open_base(recipe: Any) -> Base:
        asked.append(recipe.model)
        return Base(stand_in(), "standin", {}, 8, (0.5,) * 3, (0.5,) * 3)

    monkeypatch.setattr(task, "open_base", open_base)
    done = cli("generate", "some_unet", "--out", "out", *FAST, "--json").json()
    assert (done["model"], done["params"]) == ("some_unet", 0)
    assert asked[0].pretrained
    assert json.loads(Path("out/manifest.json").read_text())["adapter"] is None


def test_classification_cannot_generate_images(trained: Path, cli: Cli) -> None:
    for source in (trained, trained / "adapter.safetensors"):
        result = cli("generate", source, "--out", "out")
        assert result.code == 2
        assert "a classification run cannot generate images or text" in result.message
        assert "use a run with task: diffusion or text-to-image or language" in result.message
    assert "a classification base cannot generate images" in cli("generate", "glyphs_vit", "--out", "out").message
    assert not Path("out").exists()


@pytest.mark.parametrize("classes", [(), ("cat", "dog")])
def test_a_base_without_classes_draws_without_them(
    classes: tuple[str, ...], models: Models, tmp_path: Path, cli: Cli
) -> None:
    """Whether or not the images that it was trained on have classes."""
    file, before = write_adapter(tmp_path / "own.safetensors", classes=classes), StandIn.__init__

    def without_classes(self: StandIn, *words: Any) -> None:
        before(self, *words)
        self.classes = None  # type: ignore[assignment]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StandIn, "__init__", without_classes)
        done = cli("generate", file, "--out", "out", *FAST, "--json").json()
        assert (done["guidance"], done["classes"]) == (0.0, ["any"])
        assert "00000_any.png" in pngs("out")
        assert "no classes" in cli("generate", file, "--out", "more", *FAST, "--guidance", 1).message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--classes", "0,11"), "--classes: the model has no class '11' (it has 0, 1, 2, 3, 4, 5, 6, 7, …)"),
        (("--classes", ""), "--classes: the model has no class ''"),
        (("--num", "0"), "--num: 0 is too few (1 or more)"),
        (("--sampler", "dpm"), "--sampler: unknown sampler 'dpm' (did you mean '"),
        (("--steps", "1001"), "--steps: 1001 sampling steps, but the noise schedule has 1000 (1 to 1000)"),
        (("--steps", "30"), "--steps: ddim takes equal steps, but 30 does not divide 1000 (25 or 40; dpm++"),
        (("--guidance", "-2"), "--guidance: guidance -2.0 (0 or more; 0 turns it off)"),
        (("--batch-size", "0"), "--batch-size: batches of 0 images (1 or more)"),
        (("train.device=tpu",), "train.device"),
    ],
)
def test_bad_settings_are_one_line_and_nothing_is_written(
    words: tuple[str, ...], expected: str, file: Path, cli: Cli
) -> None:
    result = cli("generate", file, *words, "--out", "out")
    assert result.code == 2
    assert expected in result.message
    assert not Path("out").exists()


def test_a_source_that_is_none_is_told(cli: Cli) -> None:
    assert "did you mean 'glyphs_vit'?" in cli("generate", "glyph_vit", "--out", "out").message
    Path("other.safetensors").write_bytes(safetensors_bytes({"a": torch.zeros(1)}, {}))
    assert "not a superlora adapter" in cli("generate", "other.safetensors", "--out", "out").message
    assert not Path("out").exists()


def test_another_base_is_exit_3(file: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MismatchError("not the base that the adapter was trained on")

    monkeypatch.setattr(store, "check_base", refuse)
    assert cli("generate", file, "--out", "out", *FAST).code == 3
    assert cli("generate", file, "--out", "out", *FAST, "--allow-base-mismatch").code == 0


@pytest.mark.parametrize("when", [1, 2])
def test_an_interrupt_leaves_whole_images_and_says_so(
    when: int, file: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward: Callable[..., Any] = StandIn.forward
    calls = 0

    def interrupted(self: nn.Module, *words: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2 * when:
            raise KeyboardInterrupt
        return forward(self, *words)

    monkeypatch.setattr(StandIn, "forward", interrupted)
    words = ("generate", file, "--out", "out", "--num", 40, "--steps", 2, "--batch-size", 16)
    result = cli(*words)
    assert result.code == 130
    assert f"{16 * when} of 40 images are written" in result.message
    assert len(pngs("out")) == 16 * when
    for name in pngs("out"):
        assert np.asarray(Image.open(Path("out/images", name))).shape == (8, 8, 3)
    assert not Path("out/grid.png").exists()
    assert json.loads(Path("out/manifest.json").read_text())["complete"] is False
    monkeypatch.undo()
