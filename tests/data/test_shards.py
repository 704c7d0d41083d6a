"""WebDataset shards are read by index."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from superlora_cli.data.batches import training_batches
from superlora_cli.data.splits import SPLITS, class_count, contents_of, evaluation_transform
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import DataSection
from tests.conftest import Cli
from tests.data.conftest import LOOK, QUICK, labels, picture, sizes, splits_of


def write_shard(path: Path, numbers: list[tuple[int, Any]], *, suffix: str = "png", more: tuple[str, ...] = ()) -> None:
    """A tar of samples as the WebDataset library writes it: members that share a key stand together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, label in numbers:
            image = io.BytesIO()
            picture(number).save(image, "png" if suffix == "png" else "jpeg")
            members = {suffix: image.getvalue(), "cls": None if label is None else str(label).encode()}
            for name, content in {**members, **dict.fromkeys(more, b"{}")}.items():
                if content is not None:
                    info = tarfile.TarInfo(f"sample{number:04}.{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two training shards and one for test, with names of classes."""
    monkeypatch.chdir(tmp_path)
    for shard in range(2):
        write_shard(Path(f"pets/train/{shard:06}.tar"), [(6 * shard + i, i % 3) for i in range(6)], more=("json",))
    write_shard(Path("pets/test/000000.tar"), [(100 + i, i % 3) for i in range(3)], suffix="jpg")
    Path("pets/classes.txt").write_text("cat\ndog\nfish\n")
    return Path("pets")


def test_samples_of_all_shards_by_index(pets: Path) -> None:
    splits = splits_of("wds/pets", validation=0.25, augment="none")
    assert splits.class_names == ("cat", "dog", "fish")
    assert sizes(splits) == (9, 3, 3)
    assert labels(splits.test) == [0, 1, 2]
    train = splits.train
    for place, index in enumerate(train.indices):  # type: ignore[attr-defined]
        image, label = train[place]
        assert label == index % 3
        assert torch.equal(image, evaluation_transform(LOOK)(picture(index)))
    assert class_count(DataSection(name="wds/pets")) == 3


def test_shards_are_held_out_by_content(pets: Path) -> None:
    parts = [contents_of(splits_of("wds/pets", split="content").named(split)) for split in SPLITS]
    assert [len(part) for part in parts] == [9, 3, 3]
    one = io.BytesIO()
    picture(5).save(one, "png")
    assert hashlib.sha256(one.getvalue()).hexdigest() in parts[0] + parts[1]


def test_batches_resume_at_a_step_with_workers(pets: Path) -> None:
    def batches(start: int, workers: int) -> list[torch.Tensor]:
        train = splits_of("wds/pets").train
        how: dict[str, Any] = {"seed": 0, "stop": 6, "pin": False, "keyed": True}
        return [images for images, _ in training_batches(train, 4, start=start, workers=workers, **how)]

    for one, other in zip(batches(0, 0)[3:], batches(3, 2), strict=True):
        assert torch.equal(one, other)


def test_an_index_as_timm_writes_it(pets: Path) -> None:
    (pets / "train").rename(pets / "shards")
    Path("pets/classes.txt").unlink()
    parts = {"train": ["shards/000001.tar"], "validation": ["shards/000000.tar"], "test": ["test/000000.tar"]}
    splits = {name: {"name": name, "filenames": files, "num_samples": 6} for name, files in parts.items()}
    Path("pets/_info.json").write_text(json.dumps({"splits": splits, "class_names": ["a", "b", "c"]}))
    found = splits_of("wds/pets")
    assert found.class_names == ("a", "b", "c")
    assert sizes(found) == (6, 6, 3)
    assert found.fingerprint != splits_of_flat(pets).fingerprint


def splits_of_flat(pets: Path) -> Any:
    """The same shards in one folder, told apart by name."""
    flat = pets.parent / "flat"
    flat.mkdir()
    for number in range(2):
        (flat / f"train-{number}.tar").write_bytes((pets / f"shards/00000{number}.tar").read_bytes())
    (flat / "val-0.tar").write_bytes((pets / "test/000000.tar").read_bytes())
    found = splits_of("wds/flat", num_classes=3, validation=0.5)
    assert sizes(found) == (6, 6, 3)
    assert found.class_names == ("0", "1", "2")
    return found


def test_the_fingerprint_is_of_the_shards_wherever_they_lie(pets: Path) -> None:
    first = splits_of("wds/pets").fingerprint
    assert splits_of(f"wds/{pets.resolve()}").fingerprint == first
    pets.rename("moved")
    assert splits_of("wds/moved").fingerprint == first
    write_shard(Path("moved/test/000000.tar"), [(100 + i, 2 - i % 3) for i in range(3)], suffix="jpg")
    assert splits_of("wds/moved").fingerprint != first


def test_shards_without_splits_are_for_training(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [(i, i % 2) for i in range(10)])
    assert sizes(splits_of(f"wds/{tmp_path}", num_classes=2, validation=0.2)) == (6, 2, 2)


def spoil_tar(pets: Path) -> None:
    path = pets / "train" / "000001.tar"
    path.write_bytes(path.read_bytes()[:4000])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda pets: (pets / "classes.txt").unlink(), "data.num_classes: the number of classes is unknown"),
        (
            lambda pets: (pets / "classes.txt").write_text("cat\ndog\n"),
            r"000000.tar: sample0002: class 2, but there are 2 classes",
        ),
        (lambda pets: write_shard(pets / "train/0.tar", [(7, None)]), "0.tar: sample0007: the image has no class"),
        (lambda pets: write_shard(pets / "train/0.tar", [(7, "x")]), "0.tar: sample0007: not a class: b'x'"),
        (lambda pets: (pets / "train/0.tar").write_text("no tar" * 200), "0.tar: cannot be read"),
        (spoil_tar, "000001.tar: cannot be read: unexpected end of data"),
        (lambda pets: (pets / "_info.json").write_text("[1"), "_info.json: not a JSON object"),
        (
            lambda pets: (pets / "_info.json").write_text('{"splits": {"train": {"filenames": ["no.tar"]}}}'),
            "no.tar: cannot be read",
        ),
        (lambda pets: (pets / "train").rename(pets / "other"), "holds no training shards"),
        (lambda pets: pets.rename("cats"), "no such folder of shards"),
    ],
)
def test_mistakes_are_one_line_errors(spoil: Any, says: str, pets: Path) -> None:
    spoil(pets)
    with pytest.raises(UsageError, match=says) as caught:
        splits_of("wds/pets")
    assert "\n" not in str(caught.value)


def test_an_image_that_cannot_be_read_is_named_by_shard_and_key(pets: Path) -> None:
    path = pets / "test" / "000000.tar"
    content = bytearray(path.read_bytes())
    content[512:1024] = bytes(512)
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^pets/test/000000.tar: sample0100: cannot be read as an image"):
        splits_of("wds/pets").test[0]


def test_training_on_shards(cli: Cli, pets: Path) -> None:
    result = cli("train", "quickstart", "data.name=wds/pets", *QUICK)
    assert result.code == 0, result.err
    assert result.json()["params"]["head"] == 3 * 64 + 3
    assert np.isfinite(result.json()["metrics"]["loss"])
