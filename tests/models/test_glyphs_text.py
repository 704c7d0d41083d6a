"""The shipped pipeline: prompts that no training image had together are drawn as they say, word by word."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from superlora_cli.data.captioned_glyphs import COLOURS, Words, every_caption, render
from superlora_cli.models.embedded import ASSETS, PIPELINES
from tests.conftest import Cli

FOLDER = ASSETS / "glyphs_text"
LEAST = 0.9  # of the images are as they should be


def test_it_is_the_one_whose_making_is_told_and_small() -> None:
    about = json.loads(FOLDER.with_suffix(".json").read_text())
    files = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}
    assert PIPELINES == ("glyphs_text",)
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == about["sha256"]
    assert sum(map(len, files.values())) <= 8_000_000


def nearest(pixels: np.ndarray) -> str:
    """The colour of most of the pixels (n, 3) in [0, 1]."""
    middle = np.median(pixels, axis=0)
    return min(COLOURS, key=lambda name: float(np.square(middle - COLOURS[name]).sum()))


def colours(file: Path) -> tuple[str, str]:
    """The colours of an image's ink and ground."""
    image = np.asarray(Image.open(file), np.float32) / 255
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    far = np.square(image - np.median(edge, axis=0)).sum(-1)
    return nearest(image[far >= np.quantile(far, 0.96)]), nearest(edge)


def with_another(words: Words, what: str) -> Words:
    """The first caption that differs in one word."""
    kept = [name for name in words._fields if name != what]
    return next(
        other for other in every_caption()
        if other != words and all(getattr(other, name) == getattr(words, name) for name in kept)
    )  # fmt: skip


@pytest.mark.slow
def test_one_word_changes_one_attribute_and_leaves_the_digit(cli: Cli, tmp_path: Path) -> None:
    plain = [words for words in every_caption() if words.held_out][::9]  # 20 of them, all digits
    asked = [*plain, *(with_another(words, what) for what in ("ink", "ground") for words in plain)]
    (tmp_path / "prompts.txt").write_text("".join(f"{words}\n" for words in asked))
    how = ("--guidance", "3", "--steps", "20", "--batch-size", "30", "--out", "images", "--json")
    done = cli("generate", "glyphs_text", "--prompts", "prompts.txt", *how)
    assert done.code == 0, done.err
    seen = [colours(file) for file in sorted((tmp_path / "images" / "images").iterdir())]
    inks, grounds = (np.array([one[place] for one in seen]) for place in (0, 1))
    assert np.mean(inks == [words.ink for words in asked]) >= LEAST
    assert np.mean(grounds == [words.ground for words in asked]) >= LEAST
    judged = cli("eval", "images", "--against", "digits:test", "--extractor", "digits", "--json").json()
    assert judged["metrics"]["class_accuracy"] >= LEAST


@pytest.mark.parametrize("words", every_caption()[::400])
def test_colours_are_told_apart_in_real_images(words: Words, tmp_path: Path) -> None:
    Image.fromarray(render(words, np.random.RandomState(0))).save(tmp_path / "a.png")
    assert colours(tmp_path / "a.png") == (words.ink, words.ground)
