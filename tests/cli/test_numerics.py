"""Data in which nothing varies: a training and its measures end with numbers, or say that there are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Cli

TRAIN = ("model.head=new", "train.steps=4", "train.batch_size=4", "eval.every=2", "train.threads=1")


def write_alike(root: Path, *, classes: str = "ab", count: int = 30, value: int = 0) -> None:
    """Images that are all of one grey."""
    for split in ("train", "test"):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (16, 16), (value,) * 3).save(folder / f"{index}.png")


@pytest.mark.parametrize(("value", "words"), [(0, ()), (255, ("data.augment=crop_flip",))])
def test_images_that_are_all_alike_can_be_trained_on(value: int, words: tuple[str, ...], cli: Cli) -> None:
    write_alike(Path("grey"), value=value)
    result = cli("train", "quickstart", "data.name=grey", *TRAIN, *words, "--out", "run", "--json").json()
    assert 0 <= result["metrics"]["accuracy"] <= 1
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert rows
    assert all(math.isfinite(number) for row in rows for number in row.values() if isinstance(number, float))
    assert cli("eval", "run", "--json").json()["metrics"]["accuracy"] == result["metrics"]["accuracy"]


def test_generated_images_that_are_all_alike_are_measured(cli: Cli) -> None:
    Path("flat").mkdir()
    for index in range(60):
        Image.new("RGB", (16, 16), (90, 90, 90)).save(f"flat/{index:05d}_{index % 10}.png")
    words = ("--against", "digits:test", "--extractor", "digits", "--json")
    metrics = cli("eval", "flat", *words).json()["metrics"]
    assert metrics["fid"] > 1
    assert metrics["is"] == pytest.approx(1)
    assert all(value is None or math.isfinite(value) for value in metrics.values())


def test_classes_of_one_kind_are_a_training_too(cli: Cli) -> None:
    write_alike(Path("grey"), classes="a")
    assert cli("train", "quickstart", "data.name=grey", *TRAIN, "--json").json()["metrics"]["accuracy"] == 1
