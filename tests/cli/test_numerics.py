"""Data in which nothing varies: a training and its measures end with numbers, or say that there are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from superlora_cli.errors import UsageError
from superlora_cli.tasks.classification.task import Classification
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


@pytest.mark.parametrize("words", [("train", "quickstart", "data.name=grey", *TRAIN), ("init", "--data", "grey")])
def test_a_classifier_of_one_class_is_refused(words: tuple[str, ...], cli: Cli) -> None:
    write_alike(Path("grey"), classes="a")
    result = cli(*words, *(["--model", "glyphs_vit"] if words[0] == "init" else []))
    assert result.code == 2
    assert "data.name: 'grey' has one class, 'a'" in result.message
    assert "one sub-folder of images per class" in result.message


def test_one_class_is_evaluated_by_a_model_of_more(cli: Cli) -> None:
    write_alike(Path("grey"))
    write_alike(Path("less"), classes="b")
    assert cli("train", "quickstart", "data.name=grey", *TRAIN, "--out", "run").code == 0
    (row,) = cli("eval", "run", "data.name=less", "--json").json()["per_class"]
    assert (row["class"], row["n"]) == ("b", 30)


def test_an_adapter_of_one_class_predicts_nothing() -> None:
    with pytest.raises(UsageError, match="the model has one class"):
        list(Classification.predictions(torch.zeros(2, 1), ["a"]))


@pytest.mark.slow
def test_one_label_or_images_to_generate_are_enough(cli: Cli) -> None:
    write_alike(Path("grey"), classes="a")
    Path("grey/train/labels.csv").write_text("file,labels\na/0.png,a\n" + "".join(f"a/{n}.png,\n" for n in range(1, 9)))
    assert cli("train", "quickstart", "data.name=grey/train", *TRAIN, "--dry-run").code == 0
    assert cli("train", "digits_unet_2d", "data.name=grey", "data.multi_label=false", "--dry-run").code == 0
