"""Hugging Face data sets: from folders, from the cache, and a clear line where they are not."""

from __future__ import annotations

import io
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from superlora_cli.data.splits import SPLITS, class_count, contents_of
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import DataSection
from tests.conftest import Cli
from tests.data.conftest import QUICK, labels, picture, sizes, splits_of, write_folder

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's cache in a folder of this test, which is the current one."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("huggingface")))
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))


def table(n: int, *, start: int = 0, classes: Any = ("cat", "dog"), image: str = "image", label: str = "label") -> Any:
    """Images and their classes; `classes` as names, as "text" or as numbers."""
    kind = datasets.ClassLabel(names=list(classes)) if isinstance(classes, tuple) else datasets.Value(classes)
    numbers = [i % 2 for i in range(n)]
    images = []
    for i in range(n):
        stream = io.BytesIO()
        picture(start + i).save(stream, "png")
        images.append({"bytes": stream.getvalue(), "path": None})
    content = {image: images, label: [f"kind {i}" for i in numbers] if classes == "string" else numbers}
    return datasets.Dataset.from_dict(content, datasets.Features({image: datasets.Image(), label: kind}))


def saved(path: Path, parts: dict[str, int], how: str, **kind: Any) -> None:
    """A set on disk, as the library writes it."""
    sets = {name: table(n, start=100 * i, **kind) for i, (name, n) in enumerate(parts.items())}
    if how == "disk":
        datasets.DatasetDict(sets).save_to_disk(path)
        return
    (path / "data").mkdir(parents=True)
    for name, dataset in sets.items():
        dataset.to_parquet(path / "data" / f"{name}-00000-of-00001.parquet")


@pytest.mark.parametrize("how", ["disk", "parquet"])
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"train": 8, "validation": 4, "test": 2}, (8, 4, 2)),
        ({"train": 8, "test": 2}, (6, 2, 2)),
        ({"train": 8, "validation": 4}, (6, 2, 4)),
        ({"train": 8}, (4, 2, 2)),
    ],
)
def test_a_saved_set_gives_three_splits(how: str, parts: dict[str, int], expected: tuple[int, ...]) -> None:
    saved(Path("pets"), parts, how)
    splits = splits_of("hfds/pets", validation=0.25)
    assert sizes(splits) == expected
    assert splits.class_names == ("cat", "dog")
    assert splits.train[0][0].shape == (3, 16, 16)
    assert set(labels(splits.test)) <= {0, 1}
    assert class_count(DataSection(name="hfds/pets")) == 2
    assert splits.fingerprint == splits_of("hfds/pets").fingerprint


@pytest.mark.parametrize("how", ["disk", "parquet"])
def test_a_saved_set_is_held_out_by_content(how: str) -> None:
    saved(Path("pets"), {"train": 20}, how)
    splits = splits_of("hfds/pets", split="content")
    assert sizes(splits) == (16, 2, 2)
    contents = [contents_of(splits.named(split)) for split in SPLITS]
    assert len({content for part in contents for content in part}) == 20


def test_one_split_saved_on_its_own_is_for_training() -> None:
    table(8).save_to_disk("pets")
    assert sizes(splits_of("hfds/pets", validation=0.25)) == (4, 2, 2)


def test_a_folder_of_images() -> None:
    write_folder(Path("pets/train"))
    write_folder(Path("pets/test"), count=2)
    splits = splits_of("hfds/pets", validation=0.25)
    assert splits.class_names == ("a", "b", "c")
    assert sizes(splits) == (9, 3, 6)
    assert labels(splits.test) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("kind", "names"), [("string", ("kind 0", "kind 1")), ("int64", ("0", "1"))])
def test_classes_without_features(kind: str, names: tuple[str, ...]) -> None:
    saved(Path("pets"), {"train": 8, "test": 4}, "parquet", classes=kind)
    splits = splits_of("hfds/pets")
    assert splits.class_names == names
    assert labels(splits.test) == [0, 1, 0, 1]


def test_columns_are_found_by_what_they_hold() -> None:
    saved(Path("pets"), {"train": 8}, "disk", image="img", label="fine_label")
    assert splits_of("hfds/pets").class_names == ("cat", "dog")


def test_unlabelled_test_images_are_not_used() -> None:
    sets = {name: table(4, start=10 * i) for i, name in enumerate(("train", "validation", "test"))}
    sets["test"] = sets["test"].remove_columns("label").add_column("label", [-1] * 4)
    sets["test"] = sets["test"].cast_column("label", sets["train"].features["label"])
    datasets.DatasetDict(sets).save_to_disk("pets")
    splits = splits_of("hfds/pets")
    assert splits.notes == ("pets: split 'test' has images without a class and is not used",)
    assert len(splits.test) == 4


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: saved(Path("pets"), {"other": 4}, "disk"), "pets: no split 'train' among 'other'"),
        (lambda: table(4).remove_columns("label").save_to_disk("pets"), "pets: no column 'label' among 'image'"),
        (lambda: table(4).remove_columns("image").save_to_disk("pets"), "pets: no column of images among 'label'"),
        (lambda: Path("pets").mkdir(), "cannot read data set 'hfds/pets': "),
    ],
)
def test_a_set_that_cannot_be_understood_is_refused(make: Any, says: str) -> None:
    make()
    with pytest.raises(UsageError, match=says) as caught:
        splits_of("hfds/pets")
    assert "\n" not in str(caught.value)


def test_an_image_that_cannot_be_read_is_named() -> None:
    broken = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    images = [{"bytes": b"no image", "path": None}] * 4
    datasets.Dataset.from_dict({"image": images, "label": [0] * 4}, broken).save_to_disk("pets")
    with pytest.raises(UsageError, match=r"^image \d of pets, train: cannot be read as an image"):
        splits_of("hfds/pets").train[0]


@pytest.mark.parametrize("name", ["beans", "meadow/beans"])
def test_a_set_in_the_cache_needs_no_network(name: str) -> None:
    table(8).to_parquet("rows.parquet")
    datasets.load_dataset("parquet", data_files="rows.parquet")
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    (made,) = cache.glob("parquet/*/*/*/")
    place = cache / name.replace("/", "___") / "default" / "0.0.0" / "0123456789abcdef"  # as a set of the hub
    place.parent.mkdir(parents=True)
    made.rename(place)
    (place / "parquet-train.arrow").rename(place / "beans-train.arrow")
    splits = splits_of(f"hfds/{name}", download=True)
    assert splits.class_names == ("cat", "dog")
    assert sum(sizes(splits)) == 8


def with_configurations(path: Path) -> None:
    """A set of two configurations, as the hub has it."""
    for start, name in enumerate(("cats", "dogs")):
        (path / name).mkdir(parents=True)
        table(4 + 4 * start, start=50 * start).to_parquet(path / name / "train.parquet")
    lines = (f"- {{config_name: {name}, data_files: {name}/train.parquet}}" for name in ("cats", "dogs"))
    (path / "README.md").write_text("\n".join(["---", "configs:", *lines, "---", ""]))


def test_a_configuration_is_chosen_by_name() -> None:
    with_configurations(Path("pets"))
    assert [sum(sizes(splits_of("hfds/pets", config=name))) for name in ("cats", "dogs")] == [4, 8]
    assert class_count(DataSection(name="hfds/pets", config="dogs")) == 2
    one, other = (splits_of("hfds/pets", config=name).fingerprint for name in ("cats", "dogs"))
    assert one != other


@pytest.mark.parametrize(("config", "says"), [(None, "Config name is missing"), ("birds", "'birds' not found")])
def test_a_set_with_several_configurations_lists_them(config: str | None, says: str) -> None:
    with_configurations(Path("pets"))
    with pytest.raises(UsageError, match=says) as caught:
        splits_of("hfds/pets", config=config)
    assert caught.value.where == "data.config"
    assert "['cats', 'dogs']" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_is_chosen_in_the_cache() -> None:
    with_configurations(Path("pets"))
    for name in ("cats", "dogs"):
        datasets.load_dataset("pets", name)
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    for made in list(cache.glob("pets/*/*/*/")):  # as a set of the hub
        place = cache / "meadow___pets" / made.parts[-3].partition("-")[0] / "0.0.0" / "0123456789abcdef"
        place.parent.mkdir(parents=True)
        made.rename(place)
    assert [sum(sizes(splits_of("hfds/meadow/pets", config=name))) for name in ("cats", "dogs")] == [4, 8]
    with pytest.raises(UsageError, match=r"data.config: .* multiple .* configurations in the cache: cats, dogs"):
        splits_of("hfds/meadow/pets")


def test_only_a_set_of_hugging_face_has_configurations() -> None:
    write_folder(Path("pets"))
    saved(Path("saved"), {"train": 8}, "disk")
    for name in ("pets", "hfds/saved", "digits", "torch/cifar10"):
        with pytest.raises(UsageError, match=r"data.config: .*has no configurations"):
            splits_of(name, config="cats")


def test_a_pinned_set_is_that_commit_in_the_cache_and_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    table(8).to_parquet("rows.parquet")
    datasets.load_dataset("parquet", data_files="rows.parquet")
    cache, commits = Path(datasets.config.HF_DATASETS_CACHE), ("a" * 40, "b" * 40)
    (made,) = cache.glob("parquet/*/*/*/")
    (made / "parquet-train.arrow").rename(made / "beans-train.arrow")
    for commit in commits:
        shutil.copytree(made, cache / "meadow___beans/default/0.0.0" / commit)
    assert sum(sizes(splits_of(f"hfds/meadow/beans@{commits[0]}"))) == 8
    with pytest.raises(UsageError, match=f"no folder 'meadow/beans@{'c' * 40}', and no such"):
        splits_of(f"hfds/meadow/beans@{'c' * 40}")
    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, *name, **how: asked.append((name, how)))
    monkeypatch.setattr(datasets, "load_dataset", lambda *name, **how: asked.append((name, how)) or {"train": table(8)})
    splits_of(f"hfds/meadow/beans@{'c' * 40}", download=True)
    assert [(name[0], how["revision"]) for name, how in asked] == [("meadow/beans", "c" * 40)] * 2


def test_missing_sets_are_reported_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError) as caught:
        splits_of("hfds/beans")
    assert str(caught.value) == (
        "data.name: no folder 'beans', and no such Hugging Face data set in the cache "
        "(give a folder, or set data.download=true (needs a network))"
    )
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(UsageError) as caught:
        splits_of("hfds/beans", download=True)
    assert str(caught.value) == (
        "data: cannot read data set 'hfds/beans': Name or service not known "
        "(give a folder that holds it, or check the network)"
    )
    assert time.monotonic() - started < 10


def refuse(*_: object, **__: object) -> None:
    raise ConnectionError("Name or service not known\nwhile asking")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"need the library `datasets` \(pip install 'superlora-cli\[datasets\]'\)"):
        splits_of("hfds/pets")


def test_training_on_a_saved_set(cli: Cli) -> None:
    saved(Path("pets"), {"train": 8, "test": 4}, "parquet")
    result = cli("train", "quickstart", "data.name=hfds/pets", *QUICK)
    assert result.code == 0, result.err
    assert result.json()["params"]["head"] == 2 * 64 + 2
