"""A table says the labels of images: any number of them, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from superlora_cli.data.splits import Splits, has_several_labels, load_splits
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import DataSection
from tests.data.test_augment import LOOK

LINES = ["1.png,cat outdoors", "2.png,dog", "3.png,", "4.png,outdoors cat", "5.png,dog cat", "6.png,outdoors"]


def write(folder: Path, lines: list[str], table: Path | None = None) -> Path:
    """Images of the files in a table, and the table."""
    for line in lines:
        file = folder / line.partition(",")[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(len(file.name) + sum(map(ord, file.name))).randint(0, 255, (9, 9, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    (table or folder / "labels.csv").write_text("\n".join(["file,labels", *lines, ""]))
    return folder


def load(folder: Path, **keys: float) -> Splits:
    return load_splits(DataSection.model_validate({"name": str(folder), "split": "content", **keys}), LOOK, seed=0)


def labels(splits: Splits, split: str) -> list[list[float]]:
    images = splits.named(split)
    return sorted(images[index][1].tolist() for index in range(len(images)))  # type: ignore[arg-type]


def test_an_image_has_the_labels_of_its_line(tmp_path: Path) -> None:
    splits = load(write(tmp_path / "photos", LINES), validation=0)
    assert splits.class_names == ("cat", "dog", "outdoors")
    assert labels(splits, "train") == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("how", ["beside", "beside with its folder", "in parts", "parts in one"])
def test_a_table_may_be_next_to_the_images_or_in_their_splits(how: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    if how == "beside":
        write(photos, LINES, tmp_path / "labels.csv")
    elif how == "beside with its folder":
        write(tmp_path, [f"photos/{line}" for line in LINES])
    elif how == "in parts":
        write(photos / "train", LINES)
        write(photos / "test", ["9.png,cat"])
    else:
        write(photos, [*(f"train/{line}" for line in LINES), "test/9.png,cat"])
    splits = load(photos, validation=0.0)
    assert (len(splits.train), splits.class_names) == (6, ("cat", "dog", "outdoors"))
    assert labels(splits, "test") == ([[1, 0, 0]] if "parts" in how else [])


def test_images_are_held_out_by_their_content(tmp_path: Path) -> None:
    lines = [f"{number}.png,{'cat' if number % 2 else 'dog'}" for number in range(20)]
    splits = load(write(tmp_path / "photos", lines), validation=0.2)
    assert [len(splits.named(name)) for name in ("train", "validation", "test")] == [12, 4, 4]


def test_images_without_a_line_are_left_out_and_named(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", LINES)
    (photos / "labels.csv").write_text("\n".join(["file,labels", *LINES[1:]]))
    splits = load(photos, validation=0)
    assert len(splits.train) == 5
    assert any("left out 1 images" in note and "1.png" in note for note in splits.notes)


def test_a_folder_of_classes_stays_one(tmp_path: Path) -> None:
    write(tmp_path / "photos/cat", ["1.png,"])
    (tmp_path / "photos/cat/labels.csv").unlink()
    (tmp_path / "labels.csv").write_text("something,else")
    assert not has_several_labels(DataSection(name=str(tmp_path / "photos")))


def test_a_label_of_no_image_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", [*LINES, "7.png,cow"])
    (photos / "7.png").write_text("no image")
    with pytest.raises(UsageError, match="label 'cow': none of its training images can be read"):
        load(photos)


@pytest.mark.parametrize("parts", [False, True])
def test_a_column_label_has_the_class_of_each_image(parts: bool, tmp_path: Path) -> None:
    lines = ["1.png,tabby cat", "2.png,10", "3.png,9", "4.png,tabby cat"]
    photos = write(tmp_path / "photos", [*(f"train/{line}" for line in lines), "test/5.png,9"] if parts else lines)
    table = photos / "labels.csv"
    table.write_text(table.read_text().replace("file,labels", "filename,label"))
    Image.new("RGB", (9, 9)).save(photos / "other.png")
    assert not has_several_labels(DataSection(name=str(photos)))
    splits = load(photos, validation=0)
    assert splits.class_names == ("9", "10", "tabby cat")
    assert [splits.train[index][1] for index in range(4)] == [2, 1, 0, 2]
    assert [splits.test[index][1] for index in range(len(splits.test))] == ([0] if parts else [])
    assert any("left out 1 images that are not in labels.csv" in note for note in splits.notes)
    assert load(photos, validation=0, multi_label=True).train[0][1].tolist() == [0, 0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("table", "where", "message"),
    [
        ("", ":1", "no column 'file'"),
        ("file,labels,split\n1.png,cat,train", ":1", "unknown column 'split'"),
        ("file;labels\n1.png;cat", ":1", "unknown column 'file;labels'"),
        ("file,labels\n1.png,cat\n\n7.png,cat", ":4", "no such image '7.png'"),
        ("file,labels\n,cat", ":2", "no such image ''"),
        ("file,labels\n1.png,cat,dog", ":2", "3 values in 2 columns"),
        ("file,labels\n1.png,cat\n1.png,dog", ":3", "is listed twice"),
        ("file,labels\n1.png,\n2.png,", "", "no training image has a label"),
        ("file,label\n1.png,cat\n2.png, ", ":3", "'2.png' has no label"),
        ("file,label,labels\n1.png,cat,cat", ":1", "unknown column 'labels'"),
        ("file,labels\n", "", "lists no training images"),
        ("file,path,label\n1.png,1.png,cat", ":1", "unknown column 'path'"),
        ("file,labels\n1.png,cat\ntest/8.png,cow", ":3", "label 'cow' has no training images"),
    ],
)
def test_mistakes_in_a_table_are_named_by_line(table: str, where: str, message: str, tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", [*LINES, "test/8.png,"])
    (photos / "labels.csv").write_text(table)
    with pytest.raises(UsageError) as caught:
        load(photos, validation=0)
    assert (caught.value.where or "").removeprefix(str(photos / "labels.csv")) == where
    assert message in caught.value.message
    assert caught.value.hint
