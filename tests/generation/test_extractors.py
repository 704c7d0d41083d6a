"""Features: of which network, extracted once, remembered by content."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from superlora_cli.data.digits import load_digits_split
from superlora_cli.data.glyphs import render_glyphs
from superlora_cli.errors import UsageError
from superlora_cli.generation import extractors, features
from superlora_cli.generation.extractors import CLASSIFIER, load_extractor
from superlora_cli.generation.features import extract
from superlora_cli.generation.image_sets import parse_reference, read_images, read_split
from superlora_cli.models import hub
from superlora_cli.models.embedded import ASSETS
from superlora_cli.recipe.load import load_recipe
from superlora_cli.recipe.schema import DataSection
from tests.generation.conftest import Folder


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No features are remembered yet, and no weights downloaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    return tmp_path / "cache" / "superlora" / "features"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that went through the digit classifier, by size."""
    seen, forward = [], extractors.DigitsFeatures.forward

    def counted(self: extractors.DigitsFeatures, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(extractors.DigitsFeatures, "forward", counted)
    return seen


@pytest.mark.parametrize("size", [16, 28, 32])
def test_the_shipped_classifier_knows_handwritten_digits_it_has_not_seen(size: int) -> None:
    images, labels = load_digits_split("test", size)
    logits, pooled = load_extractor("digits").module(images)
    assert logits.shape == (500, 10)
    assert pooled.shape == (500, 96)
    assert (logits.argmax(-1) == labels).float().mean() >= 0.97


def test_the_shipped_classifier_knows_coloured_and_printed_digits() -> None:
    module = load_extractor("digits").module
    images, labels = render_glyphs("test", 300)
    assert (module(images)[0].argmax(-1) == labels).float().mean() >= 0.97
    images, labels = load_digits_split("test")
    random = torch.Generator().manual_seed(0)
    dark = 0.4 * torch.rand(500, 3, 1, 1, generator=random)
    light = dark + 0.3 + (0.7 - dark) * torch.rand(500, 3, 1, 1, generator=random)
    coloured = (255 * dark + images * (light - dark)).round().to(torch.uint8)
    assert (module(coloured)[0].argmax(-1) == labels).float().mean() >= 0.95


def test_the_shipped_classifier_is_small_and_says_where_it_is_from() -> None:
    weights = ASSETS / f"{CLASSIFIER}.safetensors"
    assert weights.stat().st_size < 1_500_000
    about = json.loads((ASSETS / f"{CLASSIFIER}.json").read_text())
    recipe = load_recipe(f"pretrain_{CLASSIFIER}").to_dict()
    assert about["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest() == load_extractor("digits").weights
    assert {key: about["recipe"][key] for key in ("model", "data", "seed")} == {
        key: recipe[key] for key in ("model", "data", "seed")
    }
    assert about["recipe"]["train"] == recipe["train"]


def test_layers_come_in_the_order_asked_for() -> None:
    images = load_digits_split("test")[0][:3]
    logits, pooled = extractors.DigitsFeatures("x", ["logits", "pooled"])(images)
    again = extractors.DigitsFeatures("x", ["pooled"])(images)
    assert torch.equal(again[0], pooled)
    assert logits.dtype == pooled.dtype == torch.float32


def test_features_are_extracted_once_for_the_same_images(folder: Folder, passes: list[int]) -> None:
    one, network = folder("one", 30), load_extractor("digits")
    first = extract(read_images(one), network, batch_size=20)
    assert passes == [20, 10]
    second = extract(read_images(folder("same", 30)), network)
    assert passes == [20, 10]
    assert second.digest == first.digest
    assert torch.equal(second.logits, first.logits)
    assert torch.equal(second.pooled, first.pooled)


def test_a_changed_image_makes_another_fingerprint(folder: Folder, passes: list[int]) -> None:
    one, network = folder("one", 30), load_extractor("digits")
    first = extract(read_images(one), network)
    image = next(one.glob("00004_*"))
    pixels = Image.open(image)
    pixels.putpixel((3, 3), (1, 2, 3))
    pixels.save(image)
    second = extract(read_images(one), network)
    assert sum(passes) == 60
    assert second.digest != first.digest
    assert not torch.equal(second.pooled[4], first.pooled[4])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_cached_features_are_recomputed(
    folder: Folder, passes: list[int], empty_cache: Path, damage: str
) -> None:
    one, network = folder("one", 30), load_extractor("digits")
    first = extract(read_images(one), network)
    (file,) = empty_cache.iterdir()
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes({"truncated": content[:-7], "flipped": content, "empty": b""}[damage])
    assert torch.equal(extract(read_images(one), network).pooled, first.pooled)
    assert sum(passes) == 60
    extract(read_images(one), network)
    assert sum(passes) == 60


def test_an_unwritable_cache_is_not_an_error(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert len(extract(read_images(folder("one", 30)), load_extractor("digits"))) == 30


def test_the_least_recently_used_features_are_removed(
    folder: Folder, passes: list[int], empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, sets = load_extractor("digits"), [read_images(folder(str(seed), 30, seed=seed)) for seed in range(3)]
    for age, images in ((2, sets[0]), (1, sets[1])):
        extract(images, network)
        newest = max(empty_cache.iterdir(), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (time.time() - 1000 * age,) * 2)
    extract(sets[0], network)  # now the second is the one longest unused
    assert len(passes) == 2
    monkeypatch.setattr(features, "ROOM", 2.5 * newest.stat().st_size)
    extract(sets[2], network)
    assert len(list(empty_cache.iterdir())) == 2
    extract(sets[0], network)
    assert len(passes) == 3
    extract(sets[1], network)
    assert len(passes) == 4


def test_a_generated_folder_says_the_classes_itself(folder: Folder) -> None:
    images = folder("images", 4)
    names = sorted(path.name for path in images.iterdir())
    shown = ["Siamese cat", "dog", "Siamese cat", "1"]
    manifest = images.parent / "manifest.json"
    manifest.write_text(json.dumps({"images": dict(zip(names, shown, strict=True)), "complete": True}))
    assert read_images(images).classes == read_images(images.parent).classes == tuple(shown)
    (images / names[2]).unlink()
    with pytest.raises(UsageError, match="1 of 4 images are missing"):
        read_images(images)
    manifest.write_text('{"name": "somebody else\'s"}')
    assert read_images(images).classes == tuple(Path(name).stem[6:] for name in names if (images / name).exists())


def test_images_come_in_natural_order_with_their_classes(folder: Folder) -> None:
    one = folder("one", 12)
    images = read_images(one)
    assert len(images) == 12
    assert images.classes == tuple(path.stem.partition("_")[2] for path in sorted(one.glob("000*")))
    (one / "manifest.csv").write_text("file,class\n" + "".join(f"{path.name},7\n" for path in one.glob("000*")))
    assert read_images(one).classes == ("7",) * 12
    (one / "manifest.csv").write_text("name\nx\n")
    with pytest.raises(UsageError, match="columns file,class"):
        read_images(one)


def test_a_split_is_compared_at_equal_size() -> None:
    images = read_split(DataSection(name="digits"), "test", (16, 16))
    assert torch.equal(torch.stack([images[i] for i in range(500)]), load_digits_split("test")[0])
    assert read_split(DataSection(name="digits"), "test", (32, 32)).size == (32, 32)
    with pytest.raises(UsageError, match="20×16"):
        read_split(DataSection(name="digits"), "test", (16, 20))


def test_a_folder_of_class_folders_is_a_data_set(folder: Folder, tmp_path: Path) -> None:
    for number in range(2):
        folder("source", 20, seed=number).rename(tmp_path / f"class-{number}")
    (tmp_path / "set").mkdir()
    for number in range(2):
        (tmp_path / f"class-{number}").rename(tmp_path / "set" / str(number))
    assert parse_reference(f"{tmp_path / 'set'}:train") == (str(tmp_path / "set"), "train")
    images = read_split(DataSection(name=str(tmp_path / "set")), "train", (16, 16))
    assert 30 <= len(images) <= 38
    assert images[0].dtype == torch.uint8


def test_inception_without_weights_says_at_once_where_to_put_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "reachable", lambda address: False)
    begun = time.monotonic()
    with pytest.raises(UsageError) as caught:
        load_extractor("inception")
    assert time.monotonic() - begun < 5
    expected = tmp_path / "cache" / "torch" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    assert caught.value.where == str(expected)
    assert "--extractor digits" in str(caught.value.hint)
    assert "--weights" in str(caught.value.hint)


def test_other_weights_are_not_accepted_as_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(UsageError, match="no such file"):
        load_extractor("inception", path)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(UsageError, match="expected 6726825d"):
        load_extractor("inception", path)
    monkeypatch.setattr(extractors, "INCEPTION_HASH", "")
    with pytest.raises(UsageError, match="not the weights of Inception"):
        load_extractor("inception", path)
    torch.save({"run": print}, path)
    with pytest.raises(UsageError, match="not the weights of Inception"):
        load_extractor("inception", path)


@pytest.mark.slow
def test_inception_gives_its_two_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Folder) -> None:
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: None)
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    random = FeatureExtractorInceptionV3("x", ["2048"])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.save(random.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(extractors, "INCEPTION_HASH", "")
    network = load_extractor("inception", tmp_path / "weights.pth")
    found = extract(read_images(folder("one", 3)), network)
    assert found.logits.shape == (3, 1008)
    assert found.pooled.shape == (3, 2048)
