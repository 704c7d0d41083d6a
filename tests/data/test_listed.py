"""Data sets of VTAB-1k and FGVC, read from small files in the form in which papers share them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from superlora_cli.data.suites import SUITES, names_of
from superlora_cli.errors import UsageError
from tests.conftest import Cli
from tests.data.conftest import labels, picture, sizes, splits_of

TRAIN, VALIDATION, TEST = [0, 3, 1, 1], [2, 0], [3, 2, 1]


def write_vtab(root: Path) -> None:
    """KITTI, of four classes, with a space in one path."""
    folder = root / "kitti"
    lines: dict[str, list[str]] = {}
    for part, classes in (("train800", TRAIN), ("val200", VALIDATION), ("test", TEST)):
        where = "images/te st" if part == "test" else f"images/{part}"
        (folder / where).mkdir(parents=True)
        for number, label in enumerate(classes):
            picture(len(part), number).save(folder / where / f"{number:06}.png")
            lines.setdefault(part, []).append(f"{where}/{number:06}.png {label}")
    lines["train800val200"] = lines["train800"] + lines["val200"]
    for part, own in lines.items():
        (folder / f"{part}.txt").write_text("\n".join(own) + "\n")


def write_fgvc(root: Path, classes: int = 102) -> None:
    """Flowers, whose classes are numbered from 1, in `images`."""
    folder = root / "flowers"
    (folder / "images" / "a").mkdir(parents=True)
    for split, numbers in (("train", range(1, classes + 1)), ("val", (7, 3)), ("test", (102,))):
        named = {f"a/{split}{place}.png": number for place, number in enumerate(numbers)}
        for place, name in enumerate(named):
            picture(len(split), place, side=4).save(folder / "images" / name)
        (folder / f"{split}.json").write_text(json.dumps(named))


def test_vtab_has_19_data_sets_in_three_groups_and_fgvc_five() -> None:
    assert [len(group) for group in SUITES["vtab"].groups.values()] == [7, 4, 8]
    assert sum(names_of("vtab").values()) == 100 + 102 + 47 + 102 + 37 + 10 + 397 + 2 + 10 + 45 + 5 + 8 + 6 * 2 + 4 + 59
    assert names_of("fgvc") == {
        "fgvc/cub200": 200, "fgvc/nabirds": 555, "fgvc/flowers": 102, "fgvc/dogs": 120, "fgvc/cars": 196
    }  # fmt: skip


def test_the_lists_of_vtab_are_the_splits(tmp_path: Path) -> None:
    write_vtab(tmp_path)
    found = splits_of("vtab/kitti", root=str(tmp_path))
    assert [labels(part) for part in (found.train, found.validation, found.test)] == [TRAIN, VALIDATION, TEST]
    assert found.class_names == ("0", "1", "2", "3")
    whole = splits_of("vtab/kitti", root=str(tmp_path), validation=0)
    assert labels(whole.train) == TRAIN + VALIDATION
    assert sizes(whole)[1:] == sizes(found)[1:]
    assert "all 1,000 images" in whole.notes[0]
    assert whole.fingerprint != found.fingerprint


def test_the_lists_of_fgvc_are_the_splits(tmp_path: Path) -> None:
    write_fgvc(tmp_path)
    found = splits_of("fgvc/flowers", root=str(tmp_path))
    assert sizes(found) == (102, 2, 1)
    assert [labels(found.validation), labels(found.test)] == [[6, 2], [101]]
    assert Counter(labels(found.train)) == Counter(range(102))


def test_a_hugging_face_set_with_vtabs_splits_is_read_alike(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c", "d"])})
    parts = {"train800": TRAIN, "val200": VALIDATION, "train800val200": TRAIN + VALIDATION, "test": TEST}
    made = {
        split: datasets.Dataset.from_dict(
            {"image": [picture(place) for place in range(len(classes))], "label": classes}, features=features
        )
        for split, classes in parts.items()
    }
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "kitti"))
    assert sizes(splits_of(f"hfds/{tmp_path}/kitti")) == (4, 2, 3)
    assert sizes(splits_of(f"hfds/{tmp_path}/kitti", validation=0)) == (6, 2, 3)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("val200.txt", None, r"val200.txt: cannot be read: No such file or directory \(data.root"),
        ("test.txt", "images/a.png 4\n", r"test.txt:1: 'images/a.png 4' is not a path and a class below 4"),
        ("train800.txt", "images/a.png\n", "train800.txt:1"),
        ("train800.txt", "", "lists no images"),
        ("train800.txt", "images/gone.png 0\n", "gone.png"),
    ],
)
def test_a_wrong_list_is_one_line(tmp_path: Path, file: str, text: str | None, said: str) -> None:
    write_vtab(tmp_path)
    path = tmp_path / "kitti" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UsageError, match=said):
        splits_of("vtab/kitti", root=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"), [("{", "cannot be read"), ("[1]", "not a JSON object"), ('{"a": "b"}', "not a JSON object")]
)
def test_a_wrong_object_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    write_fgvc(tmp_path)
    (tmp_path / "flowers" / "val.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        splits_of("fgvc/flowers", root=str(tmp_path))


def test_lists_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    write_fgvc(tmp_path, classes=101)
    (tmp_path / "flowers" / "test.json").write_text('{"a/train0.png": 1}')
    with pytest.raises(UsageError, match="its lists have 101 classes, not 102"):
        splits_of("fgvc/flowers", root=str(tmp_path))


def test_a_set_of_vtab_is_trained_on(cli: Cli, tmp_path: Path) -> None:
    write_vtab(tmp_path)
    words = ("model.head=new", "train.steps=1", "train.batch_size=4", "--json")
    done = cli("train", "quickstart", "data={name: vtab/kitti, root: .}", *words)
    assert done.code == 0, done.err
    assert done.json()["images"] == {"train": 4, "validation": 2, "test": 3}
    assert done.json()["params"]["head"] == 4 * 64 + 4
    assert "vtab/cifar" in cli("train", "quickstart", "data.name=vtab/cifra").message
