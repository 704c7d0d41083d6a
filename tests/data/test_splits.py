"""Data are a function of seed and step, and no image is in two splits."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from superlora_cli.data.batches import StepSampler, evaluation_batches, training_batches
from superlora_cli.data.digits import SPLIT_SIZES, load_digits_split, split_indices
from superlora_cli.data.glyphs import render_glyphs
from superlora_cli.data.known import kind_named
from superlora_cli.data.splits import Look, load_splits
from superlora_cli.data.stream import Share, of_epochs
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import DataSection
from tests.conftest import Cli, contents, metrics

LOOK = Look(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def keys(length: int, batch_size: int, *, start: int, stop: int, seed: int = 0) -> list[list[tuple[int, int]]]:
    return list(StepSampler(length, batch_size, seed=seed, start=start, stop=stop))


# Batches


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 20), st.integers(0, 20), st.integers(0, 3))
def test_batches_are_a_function_of_the_step(length: int, size: int, start: int, more: int, seed: int) -> None:
    whole = keys(length, size, start=0, stop=start + more, seed=seed)
    assert keys(length, size, start=start, stop=start + more, seed=seed) == whole[start:]
    assert all(len(batch) == min(size, length) for batch in whole)
    assert len(StepSampler(length, size, seed=seed, start=start, stop=start + more)) == more


def test_an_epoch_covers_every_image_once_and_the_next_in_another_order() -> None:
    first, second = (keys(60, 10, start=start, stop=start + 6) for start in (0, 6))
    for epoch, batches in enumerate((first, second)):
        assert sorted(index for batch in batches for _, index in batch) == list(range(60))
        assert {number for batch in batches for number, _ in batch} == {epoch}
    assert [index for batch in first for _, index in batch] != [index for batch in second for _, index in batch]


def test_the_last_part_batch_of_an_epoch_is_dropped() -> None:
    batches = keys(25, 10, start=0, stop=4)
    assert [batch[0][0] for batch in batches] == [0, 0, 1, 1]
    assert len({index for batch in batches[:2] for _, index in batch}) == 20


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(0, 9))
def test_batches_of_an_epoch_are_shared_out_and_those_of_a_short_one_taken_again(
    passes: int, processes: int, count: int, start: int
) -> None:
    per_epoch, parts = max(1, count // (passes * processes)), range(passes * processes)

    def epoch(number: int) -> list[tuple[int, int]]:
        return [(number, batch) for batch in range(count)]

    own = [of_epochs(epoch, per_epoch, Share(passes, one, processes), start, start + 4) for one in range(processes)]
    for step, shares in enumerate(zip(*own, strict=True), start):
        number, place = divmod(step, per_epoch)
        wanted = [(number, (place * len(parts) + part) % count) for part in parts]
        assert all(batches == wanted for batches, _ in shares)
        assert [batch for own in zip(*(own for _, own in shares), strict=True) for batch in own] == wanted


def test_another_seed_is_another_order() -> None:
    assert keys(60, 10, start=0, stop=1, seed=1) != keys(60, 10, start=0, stop=1, seed=2)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 90), st.integers(0, 9))
def test_passes_and_processes_share_the_batch_of_one_process_exactly(
    passes: int, processes: int, size: int, more: int, start: int
) -> None:
    parts, stop = passes * processes, start + 4
    length = parts + more
    shares = [
        list(StepSampler(length, size, seed=0, start=start, stop=stop, share=Share(passes, process, processes)))
        for process in range(processes)
    ]
    dealt = min(size, length // parts)
    wanted = keys(length, dealt * parts, start=start, stop=stop)
    for number, whole in enumerate(wanted):
        batches = [batch for share in shares for batch in share[number * passes : (number + 1) * passes]]
        assert {len(batch) for batch in batches} == {dealt}
        images = [key for batch in batches for key in batch]
        assert len(set(images)) == len(images)
        assert sorted(images) == sorted(whole)
    assert {len(share) for share in shares} == {len(wanted) * passes}
    sampler = StepSampler(length, size, seed=0, start=start, stop=stop, share=Share(passes, 0, processes))
    assert len(sampler) == len(wanted) * passes


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 24))
def test_fewer_images_than_batches_a_step_are_refused(passes: int, processes: int, length: int) -> None:
    def deal() -> StepSampler:
        return StepSampler(length, 8, seed=0, start=0, stop=1, share=Share(passes, 0, processes))

    if length >= passes * processes:
        assert deal().batch_size == min(8, length // (passes * processes))
        return
    with pytest.raises(UsageError, match=f"{length} training images for {passes * processes} batches per step"):
        deal()


class Noisy(Dataset[tuple[Tensor, int]]):
    """Draws from both generators that timm's transforms draw from."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3) + random.random(), index


def noisy_batches(**how: Any) -> list[tuple[Tensor, Tensor]]:
    return list(training_batches(Noisy(), 8, **{"seed": 0, "start": 0, "stop": 6, "pin": False, "keyed": True} | how))


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_depends_on_seed_epoch_and_sample_alone(workers: int) -> None:
    torch.manual_seed(workers)
    random.seed(workers)
    reference, found = noisy_batches(workers=0), noisy_batches(workers=workers, start=2)
    assert len(found) == 4
    for (images, labels), (again, labels_again) in zip(reference[2:], found, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
    by_epoch: dict[int, list[Tensor]] = {}
    for images, labels in reference:
        for image, label in zip(images, labels.tolist(), strict=True):
            by_epoch.setdefault(label, []).append(image)
    assert all(len(drawn) == 2 and not torch.equal(*drawn) for drawn in by_epoch.values())
    assert not torch.equal(noisy_batches(workers=0, seed=1)[0][0], reference[0][0])


@pytest.mark.parametrize("keyed", [True, False])
def test_reading_data_does_not_change_the_models_random_numbers(keyed: bool) -> None:
    splits = load_splits(DataSection(name="digits"), LOOK, seed=0)
    torch.manual_seed(7)
    random.seed(7)
    before = torch.get_rng_state(), random.getstate()
    list(training_batches(splits.train, 64, seed=0, start=0, stop=3, workers=0, pin=False, keyed=keyed))
    list(evaluation_batches(splits.test, 256, workers=0, pin=False))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


# Embedded sets


def test_the_splits_of_digits_are_disjoint_complete_stratified_and_fixed() -> None:
    labels = load_digits().target
    parts = split_indices(labels)
    assert {name: len(part) for name, part in parts.items()} == SPLIT_SIZES
    assert sorted(index for part in parts.values() for index in part.tolist()) == list(range(len(labels)))
    for part in parts.values():
        expected = np.bincount(labels) * len(part) / len(labels)
        assert np.abs(np.bincount(labels[part]) - expected).max() <= 1
    told = "".join(f"{name}{parts[name].tolist()}" for name in sorted(parts))
    assert hashlib.sha256(told.encode()).hexdigest() == FIXED_SPLIT


FIXED_SPLIT = "808ef72485a19ebf7e1759e64c61d4413d0adb69c33d554689e9a546ab205a81"


def test_digits_are_grey_images_that_fill_the_range() -> None:
    images, labels = load_digits_split("validation", 16)
    assert images.shape == (200, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.min() == 0
    assert images.max() == 255
    assert len(labels) == 200


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_glyph_depends_on_seed_split_and_number_alone(split: Any) -> None:
    images, labels = render_glyphs(split, 12)
    again, labels_again = render_glyphs(split, 5)
    assert torch.equal(images[:5], again)
    assert torch.equal(labels[:5], labels_again)
    assert not torch.equal(images, render_glyphs(split, 12, seed=1)[0])


def test_splits_of_glyphs_share_no_image() -> None:
    parts = [render_glyphs(split, 20)[0].flatten(1) for split in ("train", "validation", "test")]  # type: ignore[arg-type]
    assert len(torch.cat(parts).unique(dim=0)) == 60


def test_images_are_normalised_for_the_model() -> None:
    splits = load_splits(DataSection(name="digits"), Look(16, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)), seed=0)
    raw, labels = load_digits_split("test", 16)
    image, label = splits.test[3]
    wanted = (raw[3] / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1)
    torch.testing.assert_close(image, wanted)
    assert label == labels[3]


def test_the_fingerprint_changes_with_the_data() -> None:
    sections = [DataSection(name="digits")]
    sections += [DataSection(name="glyphs", train_images=count, eval_images=5) for count in (10, 11)]
    assert len({load_splits(section, LOOK, seed=0).fingerprint for section in sections}) == 3


# A folder of one's own images


def write_images(folder: Path, *, classes: str = "abc", count: int = 4, start: int = 0) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            draw = np.random.RandomState([number, start + i])
            pixels = np.full((20, 24, 3), 80 * number) + draw.randint(0, 40, (20, 24, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{start + i}.png")


def sizes(folder: Path, **keys: Any) -> dict[str, int]:
    splits = load_splits(DataSection(name=str(folder), **keys), LOOK, seed=0)
    return {split: len(splits.named(split)) for split in ("train", "validation", "test")}


def files_of(images: Any) -> set[str]:
    """The files behind a split, whether a part of a set or the whole of one."""
    if hasattr(images, "indices"):
        return {images.dataset.files[i][0] for i in images.indices}
    return {path for path, _ in images.files}


@pytest.mark.parametrize(
    ("folders", "validation", "expected"),
    [
        (("train", "val", "test"), 0.25, {"train": 12, "validation": 12, "test": 12}),
        (("training", "validation"), 0.25, {"train": 9, "validation": 3, "test": 12}),
        (("train", "test"), 0.25, {"train": 9, "validation": 3, "test": 12}),
        (("train",), 0.25, {"train": 6, "validation": 3, "test": 3}),
        (("",), 0.25, {"train": 6, "validation": 3, "test": 3}),
    ],
)
def test_a_folder_gives_three_splits_that_share_no_image(
    folders: tuple[str, ...], validation: float, expected: dict[str, int], tmp_path: Path
) -> None:
    for number, name in enumerate(folders):
        write_images(tmp_path / name, start=10 * number)
    section = DataSection(name=str(tmp_path), validation=validation)
    splits = load_splits(section, LOOK, seed=0)
    parts = [files_of(splits.named(split)) for split in ("train", "validation", "test")]
    assert dict(zip(expected, map(len, parts), strict=True)) == expected
    assert len(set.union(*parts)) == sum(expected.values())
    assert splits.classes == 3
    image, label = splits.test[0]
    assert image.shape == (3, 16, 16)
    assert label in range(3)


def test_a_class_keeps_its_number_where_another_is_missing_from_the_test_images(tmp_path: Path) -> None:
    write_images(tmp_path / "train", classes="abc")
    write_images(tmp_path / "test", classes="c")
    splits = load_splits(DataSection(name=str(tmp_path)), LOOK, seed=0)
    assert {splits.test[i][1] for i in range(4)} == {2}


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda root: None, "holds no images"),
        (
            lambda root: (write_images(root), (root / "a" / "0.png").rename(root / "x.png")),
            "1 images outside class folders",
        ),
        (
            lambda root: (write_images(root / "train"), write_images(root / "val", classes="abd")),
            "class 'd' has no training images",
        ),
    ],
)
def test_a_folder_that_cannot_be_understood_is_refused(write: Any, says: str, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UsageError, match=says):
        sizes(tmp_path)


FOLDER = ("model.head=new", "train.steps=2", "train.batch_size=4", "eval.every=1", "train.checkpoint_every=1")


def test_two_lines_of_recipe_adapt_to_a_folder_of_images(cli: Cli) -> None:
    write_images(Path("pets/train"))
    write_images(Path("pets/val"), start=10)
    before = contents(Path("pets"))
    result = cli("train", "quickstart", "data.name=pets", *FOLDER, "--json").json()
    assert result["params"]["head"] == 3 * 64 + 3
    assert result["metrics"].keys() == {"accuracy", "loss", "val_accuracy", "best_step"}  # a new head has no "before"
    evaluated = cli("eval", result["run"], "--json").json()
    assert evaluated["n"] == 12
    assert evaluated["metrics"]["accuracy"] == result["metrics"]["accuracy"]
    assert contents(Path("pets")) == before


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("count", "keys", "says", "hint"),
    [
        (1, (), "test split is empty", "needs 3 images"),
        (4, ("data.validation=0",), "test split is empty", "add folders train, val and test"),
        (1, ("data.validation=0.5", "eval.select=test"), "test split is empty", "needs 3 images"),
    ],
)
def test_data_without_images_to_judge_by_are_refused_before_training(
    count: int, keys: tuple[str, ...], says: str, hint: str, dry: tuple[str, ...], cli: Cli
) -> None:
    write_images(Path("pets"), classes="ab", count=count)
    result = cli("train", "quickstart", "data.name=pets", *FOLDER, *keys, *dry, "--out", "run")
    assert result.code == 2
    assert says in result.message
    assert hint in result.message
    assert not Path("run").exists()


def test_without_validation_images_the_best_step_is_chosen_by_the_test_images_or_not_at_all(cli: Cli) -> None:
    write_images(Path("pets/train"))
    write_images(Path("pets/test"), start=10)
    words = ("train", "quickstart", "data.name=pets", *FOLDER, "data.validation=0", "--json")
    refused = cli(*words).json()["error"]
    assert "validation split is empty" in refused["message"]
    assert "eval.select=test" in refused["hint"]
    assert cli(*words, "eval.select=test").json()["images"] == {"train": 12, "validation": 0, "test": 12}


@pytest.mark.parametrize("folders", [("",), ("train", "test")])
@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("keys", [{}, {"split": "content", "validation": 0.3}])
def test_the_sizes_of_splits_are_known_before_an_image_is_decoded(
    folders: tuple[str, ...], count: int, keys: dict[str, Any], tmp_path: Path
) -> None:
    for number, name in enumerate(folders):
        write_images(tmp_path / name, classes="ab", count=count, start=100 * number)
    section = DataSection(name=str(tmp_path), **keys)
    before = kind_named(section.name).sizes(section)
    assert before == sizes(tmp_path, **keys)
    next(tmp_path.rglob("a/*.png")).write_bytes(b"broken")
    found = sizes(tmp_path, **keys)  # which is remembered
    assert kind_named(section.name).sizes(section) == found


@pytest.mark.parametrize(
    ("words", "says"), [((), "holds test but no train"), (("data.num_classes=3",), "no images to train on")]
)
def test_a_folder_of_test_images_trains_nothing(words: tuple[str, ...], says: str, cli: Cli) -> None:
    write_images(Path("pets/test"))
    result = cli("train", "quickstart", "data.name=pets", *FOLDER, *words)
    assert result.code == 2
    assert says in result.message


@pytest.mark.parametrize(("count", "images", "epochs"), [(1, 2, 300), (40, 64, 300)])
def test_a_first_recipe_counts_what_is_left_for_training(count: int, images: int, epochs: int, cli: Cli) -> None:
    write_images(Path("my pets"), classes="ab", count=count)
    made = cli("init", "--model", "glyphs_vit", "--data", "my pets")
    assert ("the test split will be empty: a class needs 3 images" in made.err) == (count < 3)
    assert f"2, {images}" in made.out
    assert "superlora train 'my pets.yaml' --dry-run" in made.out
    text = Path("my pets.yaml").read_text()
    assert f"2 classes, {images} training images." in text
    assert f"# {epochs} epochs" in text
    assert "# superlora train 'my pets.yaml'  " in text


def test_augmented_training_is_the_same_with_workers(cli: Cli) -> None:
    write_images(Path("pets"), count=6)
    files = []
    for workers in (0, 2):
        words = ("data.name=pets", "data.augment=crop_flip", *FOLDER, f"data.workers={workers}", "--out", f"{workers}")
        assert cli("train", "quickstart", *words).code == 0
        tensors = Path(f"{workers}/adapter.safetensors")
        files.append((metrics(Path(f"{workers}")), tensors.read_bytes()[-1000:]))  # the header names the workers
    assert files[0] == files[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_does_not_decode_is_left_out_and_named(workers: int, cli: Cli) -> None:
    write_images(Path("pets"), count=6)
    broken = Path("pets/b/3.png")
    broken.write_bytes(broken.read_bytes()[:200])
    result = cli("train", "quickstart", "data.name=pets", *FOLDER, f"data.workers={workers}")
    assert result.code == 0
    unreadable = load_splits(DataSection(name="pets"), LOOK, seed=0).unreadable
    assert [file.path for file in unreadable] == ["pets/b/3.png"]


def test_more_classes_than_outputs_are_refused_before_anything_is_written(cli: Cli) -> None:
    write_images(Path("pets"), classes="abcdefghijkl")
    result = cli("train", "quickstart", "data.name=pets")
    assert result.code == 2
    assert "12 classes" in result.message
    assert "10 outputs" in result.message
    assert not list(Path("runs").glob("*"))


def test_a_signal_that_reaches_a_loader_worker_in_its_first_moment_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = torch.utils.data._utils.worker._worker_loop

    def told_to_go_before_anything_else(*about: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        plain(*about)

    monkeypatch.setattr(torch.utils.data._utils.worker, "_worker_loop", told_to_go_before_anything_else)
    images = TensorDataset(torch.zeros(6, 3, 2, 2), torch.arange(6))
    batches = training_batches(images, 2, seed=0, start=0, stop=2, workers=1, pin=False, keyed=False)
    assert len(list(batches)) == 2
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}
