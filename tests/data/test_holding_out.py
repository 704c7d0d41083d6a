"""Held-out images are a part of every class, and stay held out where others come or go."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from superlora_cli.commands.resuming import as_started
from superlora_cli.data.holding_out import by_content
from superlora_cli.data.splits import SPLITS, Splits, contents_of, load_splits
from superlora_cli.models.embedded import ASSETS
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.schema import DataSection
from superlora_cli.recipe.yaml import read_yaml
from superlora_cli.tasks.reading import settled
from superlora_cli.training.run import RunFolder
from tests.conftest import Cli
from tests.data.conftest import LOOK, QUICK, picture, splits_of, write_folder

CLASSES = range(5)


def digests(label: int, count: int) -> list[str]:
    """What stands for the contents of a class's images: in no order, and none alike."""
    return [f"{(label * 1009 + number * 7919) % 10_007:05d}" for number in range(count)]


def parts_of(images: list[tuple[int, str]], *, parts: int = 2, part: float = 0.1) -> dict[tuple[int, str], int]:
    """(class, content) → the number of its part."""
    labels, contents = zip(*images, strict=True)
    found = by_content(labels, contents, part, parts)
    assert sorted(index for part in found for index in part) == list(range(len(images)))
    return {images[index]: number for number, indices in enumerate(found) for index in indices}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("each", [39, 40, 44, 45])
def test_a_new_image_moves_at_most_one_other_of_its_class_to_another_split(each: int, parts: int) -> None:
    images = [(label, content) for label in CLASSES for content in digests(label, each)]
    before = parts_of(images, parts=parts)
    for number in range(200):
        more = (number % 5, f"{(number * 6007) % 10_007:05d}+")
        after = parts_of([more, *images], parts=parts)
        moved = [image for image in images if before[image] != after[image]]
        assert {label for label, _ in moved} <= {more[0]}
        for part in range(parts):
            assert sum(after[image] == part for image in moved) <= 1
            assert sum(before[image] == part for image in moved) <= 1


def test_every_class_gives_its_share_and_at_least_one_image() -> None:
    counts = {0: 40, 1: 40, 2: 3, 3: 5, 4: 2}
    images = [(label, content) for label, count in counts.items() for content in digests(label, count)]
    held = Counter((label, part) for (label, _), part in parts_of(images).items())
    assert [held[label, 0] for label in CLASSES] == [held[label, 1] for label in CLASSES] == [4, 4, 1, 1, 0]


@pytest.mark.parametrize("part", [0.34, 0.5, 0.9])
def test_something_is_left_to_train_on(part: float) -> None:
    images = [(label, content) for label in CLASSES for content in digests(label, label + 1)]
    left = Counter(label for (label, _), number in parts_of(images, part=part).items() if number == 2)
    assert left.keys() == set(CLASSES)


def test_classes_of_two_images_are_taken_together() -> None:
    images = [(label, content) for label in range(10) for content in digests(label, 2)]
    assert sorted(Counter(parts_of(images, parts=1).values()).items()) == [(0, 2), (1, 18)]


# Data sets


def content_splits(name: object, **keys: Any) -> Splits:
    return splits_of(name, split="content", **keys)


def test_a_folder_with_one_image_more_is_split_as_before(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", count=30)
    before = content_splits(tmp_path / "pets")
    picture(9, 9).save(tmp_path / "pets" / "b" / "00.png")
    after = content_splits(tmp_path / "pets")
    trained = set(contents_of(before.train))
    assert sum(content in trained for content in contents_of(after.test)) <= 1
    (tmp_path / "pets" / "b" / "00.png").rename(tmp_path / "pets" / "b" / "zz.png")
    names = content_splits(tmp_path / "pets")
    assert [set(contents_of(names.named(split))) for split in SPLITS] == [
        set(contents_of(after.named(split))) for split in SPLITS
    ]


def test_a_recipe_without_a_rule_keeps_the_old_split(tmp_path: Path) -> None:
    write_folder(tmp_path, count=8)
    old = splits_of(tmp_path)
    named = splits_of(tmp_path, split="shuffle")
    assert [part.indices for part in (old.train, old.validation, old.test)] == [  # type: ignore[attr-defined]
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 18, 19, 20, 21, 23],
        [10, 11],
        [14, 22],
    ]
    assert contents_of(old.test) == contents_of(named.test)


def test_few_test_images_of_a_class_are_noted(tmp_path: Path) -> None:
    write_folder(tmp_path, count=60)
    assert content_splits(tmp_path).notes == ()
    for number in range(20, 60):
        (tmp_path / "b" / f"{number}.png").unlink()
    for number in range(2, 60):
        (tmp_path / "c" / f"{number}.png").unlink()
    (note,) = content_splits(tmp_path).notes
    assert note == "classes with fewer than 5 test images, too few for a meaningful accuracy: b (2), c (0)"


def test_copies_of_training_images_among_test_images_are_noted(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", count=10)
    write_folder(tmp_path / "test", count=6)  # of which all are in train too
    note = content_splits(tmp_path).notes[0]
    assert note.endswith("of 18 test images are also training images")
    assert 12 < int(note.partition(" ")[0]) <= 18


# Runs


@pytest.fixture
def run(cli: Cli) -> dict[str, Any]:
    """A run on `pets`, in the current folder."""
    write_folder(Path("pets"), count=20)
    return cli("train", "quickstart", "data.name=pets", "train.checkpoint_every=1", *QUICK, "--out", "run").json()


def test_a_run_records_its_rule_and_counts_its_images(run: dict[str, Any], cli: Cli) -> None:
    assert read_yaml("run/recipe.yaml").data["data"]["split"] == "content"
    assert run["images"] == {"train": 48, "validation": 6, "test": 6}
    found = cli("eval", "run", "--json").json()
    assert found["metrics"]["accuracy"] == run["metrics"]["accuracy"]
    assert not any("train" in note for note in found["notes"])


def test_a_line_says_which_images_it_is_of(cli: Cli) -> None:
    write_folder(Path("pets"), count=20)
    words = [word for word in QUICK if word != "--json"]
    result = cli("train", "quickstart", "data.name=pets", *words, "--out", "run")
    assert "step 1  validation, 6 images  accuracy " in result.err
    assert "(6 images)" in result.out
    assert "(6 images)" in cli("eval", "run").out


@pytest.mark.usefixtures("run")
def test_other_data_than_the_run_was_trained_on_is_noted(cli: Cli) -> None:
    picture(7, 7).save("pets/a/new.png")
    (note,) = [note for note in cli("eval", "run", "--json").json()["notes"] if "training" in note]
    assert note.startswith("the data changed since training (")
    assert "the data changed since training" in cli("eval", "run").out


@pytest.mark.usefixtures("run")
def test_scoring_training_images_gives_a_warning(cli: Cli) -> None:
    found = cli("eval", "run", "data.validation=0.4", "--json").json()
    seen = [note for note in found["notes"] if note.endswith("of 24 test images are also training images")]
    assert len(seen) == 1
    shutil.copytree("pets", "copies/train")
    shutil.copytree("pets", "copies/test")
    notes = cli("eval", "run", "data.name=copies", "--json").json()["notes"]
    assert "48 of 60 test images are also training images" in notes


@pytest.mark.usefixtures("run")
def test_other_data_without_a_test_part_are_judged_whole(cli: Cli) -> None:
    write_folder(Path("others"), classes="bc", count=7)
    found = cli("eval", "run", "data.name=others", "--json").json()
    assert found["n"] == 14
    assert "judged by all 14 images of others, which has no test part" in found["notes"]
    assert not any("changed" in note for note in found["notes"])
    shutil.copytree("others", "more/train")
    shutil.copytree("others", "more/test")
    assert not any("judged" in note for note in cli("eval", "run", "data.name=more", "--json").json()["notes"])


@pytest.mark.usefixtures("run")
def test_test_images_alone_are_judged(cli: Cli) -> None:
    for part in ("test", "val"):
        write_folder(Path(f"only-{part}", part), classes="bc", count=7)
        assert cli("eval", "run", f"data.name=only-{part}", "--json").json()["n"] == 14
    Path("only-test/labels.csv").write_text("file,label\ntest/b/0.png,b\ntest/c/0.png,c\n")
    assert cli("eval", "run", "data.name=only-test", "--json").json()["n"] == 2


def test_moved_data_are_judged_as_before(run: dict[str, Any], cli: Cli) -> None:
    shutil.move("pets", "moved")
    found = cli("eval", "run", "data.name=moved", "--json").json()
    assert (found["n"], found["metrics"]["accuracy"]) == (6, run["metrics"]["accuracy"])
    assert not any("judged" in note or "changed" in note for note in found["notes"])


def test_a_run_finds_its_base_and_data_from_another_folder(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(Path("here/pets"), count=20)
    shutil.copy(ASSETS / "glyphs_vit.safetensors", "here/base.safetensors")
    monkeypatch.chdir("here")
    words = ("data.name=pets", "model.checkpoint=base.safetensors", "train.checkpoint_every=1", *QUICK)
    assert cli("train", "quickstart", *words, "--out", "run").code == 0
    before = cli("eval", "run", "--json").json()
    monkeypatch.chdir("..")
    found = cli("eval", "here/run", "--json").json()
    assert (found["data"], found["metrics"], found["n"]) == ("here/pets", before["metrics"], before["n"])
    assert cli("merge", "here/run", "--out", "m.safetensors", "--json").json()["verified"]
    assert cli("train", "--resume", "here/run", "train.steps=3", "--json").json()["steps"] == 3


def test_an_old_run_continues_with_its_own_split(run: dict[str, Any], cli: Cli) -> None:
    old = Path("run/recipe.yaml")
    old.write_text(old.read_text().replace("split: content", "split: shuffle"))
    assert cli("train", "quickstart", "data.name=pets", *QUICK, "train.steps=3", "--resume", "run").code == 0
    assert read_yaml("run/recipe.yaml").data["data"]["split"] == "shuffle"
    old.write_text(old.read_text().replace("  split: shuffle\n", ""))
    assert cli("train", "quickstart", "data.name=pets", *QUICK, "train.steps=4", "--resume", "run").code == 0
    assert read_yaml("run/recipe.yaml").data["data"]["split"] == "shuffle"


@pytest.mark.parametrize("rule", [None, "content", "shuffle"])
def test_labelled_texts_of_a_new_run_are_split_by_label_and_those_of_an_old_one_as_they_were(
    rule: str | None, tmp_path: Path
) -> None:
    plain = {"task": "language", "model": {"name": "sums_llama", "head": "new"}, "data": {"name": "a.jsonl"},
             "train": {"steps": 1, "optimizer": {"lr": 0.1}}}  # fmt: skip
    recipe = recipe_from_dict(plain, "")
    assert settled(recipe).data.split == "label"
    own = {**plain, "data": {"name": "a.jsonl", **({} if rule is None else {"split": rule})}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(own))
    assert as_started(recipe, RunFolder(tmp_path)).data.split == (rule or "shuffle")
    unlabelled = recipe_from_dict({**plain, "model": {"name": "sums_llama"}}, "")
    assert settled(unlabelled).data.split == "content"


@pytest.mark.usefixtures("run")
def test_resuming_on_other_data_is_noted(cli: Cli) -> None:
    picture(7, 7).save("pets/a/new.png")
    words = [word for word in QUICK if word != "--json"]
    result = cli("train", "quickstart", "data.name=pets", *words, "train.steps=3", "--resume", "run")
    assert "resuming on changed data" in result.err
    about = json.loads(Path("run/run.json").read_text())
    assert about["data"] == load_splits(DataSection(name="pets", split="content"), LOOK, seed=0).fingerprint
