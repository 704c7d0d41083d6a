"""Folders of images with captions: which captions are read, and what is said of the others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from superlora_cli.data.captioned import Captioned, held_out, read_captioned_folder
from superlora_cli.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, of which `good.png` has a caption."""
    for name in ("good", "other"):
        Image.new("RGB", (8, 8), "red" if name == "good" else "blue").save(tmp_path / f"{name}.png")
    (tmp_path / "good.txt").write_text("a red square")
    return tmp_path


def texts(found: Captioned) -> dict[str, str]:
    return dict(zip(found.train.names, found.train.texts, strict=True))


def test_a_caption_that_is_no_file_is_not_opened(folder: Path) -> None:
    """A pipe would block forever, and a device may have no end."""
    os.mkfifo(folder / "other.txt")
    found = read_captioned_folder(folder, None)
    assert texts(found) == {"good.png": "a red square"}
    assert [bad.cause for bad in found.unreadable] == ["its caption is a folder, a pipe or a device"]


def test_a_caption_may_be_in_a_file_for_kohyas_scripts(folder: Path) -> None:
    (folder / "good.caption").write_text("not this one")
    (folder / "other.caption").write_text("a blue square")
    assert texts(read_captioned_folder(folder, None)) == {"good.png": "a red square", "other.png": "a blue square"}


def test_copies_of_training_images_among_test_images_are_noted(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part).mkdir()
        shutil.copy(folder / "good.png", folder / part / "1.png")
        (folder / part / "1.txt").write_text("red")
    splits = held_out(read_captioned_folder(folder, None), 0, "content", 0)
    assert "1 of 1 test images are also training images" in splits.notes


@pytest.mark.parametrize(
    "template", ["{text!r}", "{text:>1000000000}", "{text:{class}}", "{text.__class__}", "{0}", "{"]
)
def test_a_template_has_plain_fields_only(folder: Path, template: str) -> None:
    with pytest.raises(UsageError, match=r"data\.caption"):
        read_captioned_folder(folder, template)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[" * 100_000, "cannot be read as a table"),
        ("[]", "cannot be read as a table"),
        ('{"file_name": "good.png", "text": 7}', "no file_name, or no text"),
    ],
)
def test_a_line_of_the_table_that_cannot_be_used_is_named(folder: Path, line: str, said: str) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "good.png", "text": "a"}) + "\n" + line)
    with pytest.raises(UsageError, match=r"metadata\.jsonl") as error:
        read_captioned_folder(folder, None)
    assert said in str(error.value)


def test_half_a_character_is_no_caption(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "good.png", "text": "a"}\n{"file_name": "other.png", "text": "\\ud800"}'
    )
    found = read_captioned_folder(folder, None)
    assert texts(found) == {"good.png": "a"}
    assert [bad.cause for bad in found.unreadable] == ["its caption is not UTF-8"]
