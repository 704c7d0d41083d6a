"""A folder of one's own images trains with what can be read; the rest is named and counted."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from superlora_cli import progress
from superlora_cli.data import scan
from superlora_cli.data.source import Unreadable
from superlora_cli.data.splits import class_count, class_names
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import DataSection
from tests.conftest import Cli, contents
from tests.data.conftest import QUICK, Terminal, labels, picture, sizes, splits_of, write_folder


def spoil(path: Path) -> None:
    """Cut a good image short."""
    path.write_bytes(path.read_bytes()[:200])


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes of four images, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_folder(Path("pets"))
    return Path("pets")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are looked at."""
    files: list[str] = []
    look = scan.why_unreadable

    def count(path: Path) -> str | None:
        files.append(path.name)
        return look(path)

    monkeypatch.setattr(scan, "why_unreadable", count)
    return files


def test_unreadable_files_are_left_out_and_named(pets: Path) -> None:
    spoil(pets / "b" / "3.png")
    (pets / "c" / "text.jpg").write_text("no image")
    splits = splits_of(pets, validation=0.25)
    assert sum(sizes(splits)) == 11
    assert [file.path for file in splits.unreadable] == ["pets/b/3.png", "pets/c/text.jpg"]
    (note,) = splits.notes
    assert note.startswith("left out 2 of 13 images that cannot be read: pets/b/3.png (")
    assert "pets/c/text.jpg (unknown format, or damaged)" in note


def test_a_note_names_a_few(pets: Path) -> None:
    for i in range(5):
        (pets / "a" / f"text{i}.jpg").write_text("no image")
    splits = splits_of(pets)
    assert len(splits.unreadable) == 5
    assert splits.notes[0].count("text") == 3
    assert splits.notes[0].endswith(", …")


def test_an_empty_class_folder_gets_no_number_and_is_named(pets: Path) -> None:
    (pets / "aa").mkdir()
    (pets / ".thumbnails").mkdir()
    splits = splits_of(pets)
    assert splits.class_names == ("a", "b", "c")
    assert splits.notes == ("class folders without images get no class number: pets/aa",)
    assert class_count(DataSection(name="pets")) == 3
    assert class_names(DataSection(name="pets")) == ("a", "b", "c")


def test_a_good_folder_has_no_notes(pets: Path) -> None:
    splits = splits_of(pets)
    assert splits.notes == splits.unreadable == ()


@pytest.mark.parametrize(
    ("spoiled", "says"),
    [
        ("b/*", "pets: class 'b': none of 4 images can be read"),
        ("*/*", r"pets/c/3.png: none of 12 images can be read"),
    ],
)
def test_a_class_that_cannot_be_learnt_is_refused(spoiled: str, says: str, pets: Path) -> None:
    for path in pets.glob(spoiled):
        path.write_text("no image")
    with pytest.raises(UsageError, match=says):
        splits_of(pets)


def test_a_test_folder_without_readable_images_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", classes="a", count=1)
    spoil(tmp_path / "test" / "a" / "0.png")
    with pytest.raises(UsageError, match="none of 1 images can be read"):
        splits_of(tmp_path)
    (tmp_path / "test" / "a" / "0.png").unlink()
    with pytest.raises(UsageError, match="test: holds no images"):
        splits_of(tmp_path)


def test_images_of_every_mode_train(pets: Path) -> None:
    for number, mode in enumerate(("L", "LA", "RGBA", "P", "1", "I;16")):
        picture(number).convert("I;16" if mode == "I;16" else mode).save(pets / "a" / f"{mode.replace(';', '')}.png")
    picture(7).convert("CMYK").save(pets / "a" / "cmyk.jpg")
    picture(8).save(pets / "a" / "moving.gif", save_all=True, append_images=[picture(9)])
    splits = splits_of(pets, validation=0.0)
    assert not splits.unreadable
    for images in (splits.train, splits.test):
        for i in range(len(images)):  # type: ignore[arg-type]
            assert images[i][0].shape == (3, 16, 16)
            assert torch.isfinite(images[i][0]).all()


def test_the_same_split_every_time(pets: Path) -> None:
    first, second = (splits_of(pets, validation=0.25, augment="none") for _ in range(2))
    for split in ("train", "validation", "test"):
        a, b = first.named(split), second.named(split)
        assert labels(a) == labels(b)
        assert all(torch.equal(a[i][0], b[i][0]) for i in range(len(a)))  # type: ignore[arg-type]


def test_the_fingerprint_is_of_the_files_used(pets: Path) -> None:
    prints = [splits_of(pets).fingerprint]
    (pets / "a" / "text.jpg").write_text("no image")
    assert splits_of(pets).fingerprint == prints[0]
    for change in (
        lambda: picture(0, 9).save(pets / "a" / "9.png"),
        lambda: (pets / "a" / "9.png").rename(pets / "b" / "9.png"),
        lambda: picture(0, 9, side=30).save(pets / "b" / "9.png"),
        lambda: spoil(pets / "b" / "9.png"),
    ):
        change()  # type: ignore[no-untyped-call]
        prints.append(splits_of(pets).fingerprint)
    assert len(set(prints[:4])) == 4
    assert prints[4] == prints[0]


def test_a_class_is_the_first_folder_and_those_in_it_only_hold_its_images(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("2 dogs", "10 cats")):
            write_folder(tmp_path / part / name, classes="ab", count=2)
            picture(number, 9).save(tmp_path / part / name / "9.png")
    splits = splits_of(tmp_path, validation=0)
    assert splits.class_names == class_names(DataSection(name=str(tmp_path))) == ("2 dogs", "10 cats")
    assert labels(splits.train) == labels(splits.test) == [0] * 5 + [1] * 5


@pytest.mark.parametrize("parts", [("",), ("train", "val", "test")])
def test_images_of_which_none_is_in_a_class_folder_are_one_class(parts: tuple[str, ...], tmp_path: Path) -> None:
    root = tmp_path / "birds"
    for part in parts:
        (root / part).mkdir(parents=True)
        for number in range(12):
            picture(number).save(root / part / f"{number}.png")
    splits = splits_of(root, validation=0.2)
    assert splits.class_names == class_names(DataSection(name=str(root))) == ("birds",)
    assert {*labels(splits.train), *labels(splits.validation), *labels(splits.test)} == {0}


def test_images_outside_class_folders_are_refused_in_every_part(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_folder(tmp_path / part)
    picture(1).save(tmp_path / "val" / "1.png")
    with pytest.raises(UsageError, match="val: holds 1 images outside class folders"):
        splits_of(tmp_path)


def test_files_are_numbered_and_fingerprinted_in_natural_order(tmp_path: Path) -> None:
    names = ["a2/1.ppm", "a2/B.ppm", "a2/c.ppm", "a10/2.ppm", "a10/10.ppm"]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(1).save(tmp_path / name)
    splits = splits_of(tmp_path, validation=0, split="content")
    files: Any = splits.train
    assert [(path, label) for path, label in files.dataset.files] == [
        (str(tmp_path / name), int(name.startswith("a10"))) for name in names
    ]
    said = "".join(f"{name}\0{(tmp_path / name).stat().st_size}\0{name.partition('/')[0]}\0" for name in names)
    assert splits.fingerprint == hashlib.sha256(said.encode()).hexdigest()


@pytest.mark.parametrize("part", ["", "train", "test"])
@pytest.mark.parametrize("junk", [".thumbnails", "__MACOSX", "a/.cache", "a/.hidden/deep"])
def test_hidden_and_macos_files_are_passed_over(junk: str, part: str, tmp_path: Path) -> None:
    root = tmp_path / ".config" / "pets"  # above the data's folder, a name may begin with a dot
    for name in ("train", "test") if part else ("",):
        write_folder(root / name)
    before = splits_of(root)
    write_folder(root / part / junk)
    (root / part / "b" / "._1.png").write_bytes(b"of macOS")
    (root / part / ".DS_Store.png").write_bytes(b"of macOS")
    found = splits_of(root)
    assert (found.class_names, found.fingerprint, found.notes) == (before.class_names, before.fingerprint, ())


# What was found is remembered


def test_unchanged_files_are_looked_at_once(pets: Path, decoded: list[str]) -> None:
    spoil(pets / "b" / "3.png")
    first = splits_of(pets)
    assert len(decoded) == 12
    again = splits_of(pets)
    assert len(decoded) == 12
    assert again.unreadable == first.unreadable
    assert again.fingerprint == first.fingerprint


def test_a_changed_file_is_checked_again(pets: Path, decoded: list[str]) -> None:
    splits_of(pets)
    decoded.clear()
    path = pets / "a" / "1.png"
    before = path.stat()
    path.write_bytes(bytes(before.st_size))  # of the same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    picture(5).save(pets / "a" / "new.png")
    assert splits_of(pets).unreadable == (Unreadable("pets/a/1.png", "unknown format, or damaged"),)
    assert sorted(decoded) == ["1.png", "new.png"]


def test_the_results_of_an_interrupted_scan_are_cached(
    pets: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "AT_ONCE", 4)
    look = scan.why_unreadable

    def interrupted(path: Path) -> str | None:
        if path.parent.name == "b":
            raise KeyboardInterrupt
        return look(path)

    with monkeypatch.context() as patch:
        patch.setattr(scan, "why_unreadable", interrupted)
        with pytest.raises(KeyboardInterrupt):
            splits_of(pets)
    decoded.clear()
    splits_of(pets)
    assert len(decoded) == 8


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3}', "null"])
def test_a_damaged_cache_is_ignored(content: str, pets: Path, cache: Path, decoded: list[str]) -> None:
    splits_of(pets)
    (memory,) = cache.glob("superlora/*.json")
    memory.write_text(content)
    splits_of(pets)
    assert len(decoded) == 24
    assert len(memory.read_text()) > 100


def test_an_unwritable_cache_folder_is_not_an_error(pets: Path, cache: Path, decoded: list[str]) -> None:
    (cache / "superlora").write_text("a file where the folder should be")
    assert sum(sizes(splits_of(pets))) == 12
    splits_of(pets)
    assert len(decoded) == 24


def test_without_a_home_nothing_is_cached(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert sum(sizes(splits_of(pets))) == 12


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_scan_shows_a_bar_only_on_a_terminal(
    terminal: bool, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(scan, "AT_ONCE", 4)
    monkeypatch.setattr("sys.stderr", screen := Terminal() if terminal else io.StringIO())
    splits_of(pets)
    assert ("checking the images" in screen.getvalue()) == terminal
    assert terminal or not screen.getvalue()


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_is_without_that_bar_too(quiet: bool, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conftest.io", SimpleNamespace(StringIO=Terminal))
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    write_folder(Path("pets"))
    result = cli("train", "quickstart", "data.name=pets", *QUICK, *(["--quiet"] if quiet else []))
    assert result.code == 0, result.err
    assert ("checking the images" in result.err) != quiet
    assert not quiet or not result.err


# The whole command


def test_training_on_a_folder_with_a_corrupt_image(cli: Cli) -> None:
    write_folder(Path("pets/train"), count=6)
    write_folder(Path("pets/test"), count=2)
    spoil(Path("pets/train/b/3.png"))
    before = contents(Path("pets"))
    result = cli("train", "quickstart", "data.name=pets", *QUICK)
    assert result.code == 0, result.err
    assert result.json()["params"]["head"] == 3 * 64 + 3
    assert contents(Path("pets")) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_later_ends_the_run_in_one_line(
    workers: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(Path("pets"), count=6)
    monkeypatch.setattr(scan, "why_unreadable", lambda path: None)
    spoil(Path("pets/b/3.png"))
    result: Any = cli("train", "quickstart", "data.name=pets", *QUICK[:-1], f"data.workers={workers}", "train.steps=5")
    assert result.code == 2
    assert "pets/b/3.png: cannot be read as an image" in result.message
    assert result.message.endswith("(replace or remove it)")


def test_a_link_into_nowhere_is_named(pets: Path) -> None:
    (pets / "a" / "gone.png").symlink_to("nowhere.png")
    assert splits_of(pets).unreadable == (Unreadable("pets/a/gone.png", "No such file or directory"),)


def test_image_folder_is_a_folder(pets: Path) -> None:
    assert splits_of("torch/image_folder", root="pets").class_names == ("a", "b", "c")
    assert class_count(DataSection(name="torch/image_folder", root="pets")) == 3


def test_a_phone_photo_is_not_left_out(pets: Path) -> None:
    Image.new("RGB", (8, 8)).save(pets / "a" / "photo.png")
    (pets / "a" / "photo.png").rename(pets / "a" / "photo.heic")  # read by content, not by name
    (pets / "a" / "other.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    assert [file.path for file in splits_of(pets).unreadable] == ["pets/a/other.HEIC"]
