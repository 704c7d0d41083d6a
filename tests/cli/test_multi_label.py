"""Images with several labels each, from `init` over training to evaluation and predictions."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import nn

from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import load_recipe
from superlora_cli.tasks.classification.multi_label import MultiLabel
from tests.cli.test_train import lose_power, stop_at
from tests.conftest import Cli, run_cli

COLOURS = ("blue", "green", "red")
RECIPE = """
model: {name: glyphs_vit, head: new}
data: {name: photos, augment: none}
adapter: {method: lora, targets: [q, v], rank: 1}
train: {steps: 60, batch_size: 16, threads: 1, checkpoint_every: 20, optimizer: {lr: 0.01}}
eval: {every: 20}
"""


def write_colours(folder: Path, count: int) -> None:
    """Images with none to three colours, each a label."""
    draw, lines = np.random.RandomState(0), ["file,labels"]
    folder.mkdir()
    for number in range(count):
        has = draw.rand(3) < 0.5
        pixels = np.where(has[::-1], 200, 20) + draw.randint(0, 50, (16, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{' '.join(name for name, it_has in zip(COLOURS, has, strict=True) if it_has)}")
    (folder / "labels.csv").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos/`, `colours.yaml` and its finished `run/`; read only."""
    place = tmp_path_factory.mktemp("colours")
    with contextlib.chdir(place):
        write_colours(Path("photos"), 150)
        Path("colours.yaml").write_text(RECIPE)
        trained = run_cli("train", "colours.yaml", "--out", "run", "--quiet", "--json")
        assert trained.code == 0, trained.err
        Path("trained.json").write_text(trained.out)
    return place


def test_a_run_learns_the_labels_and_is_chosen_by_mean_average_precision(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    found = json.loads(Path("trained.json").read_text())
    assert found["metrics"].keys() == {"map", "loss", "val_map", "best_step"}
    assert found["metrics"]["map"] > 0.95
    assert load_recipe("run/recipe.yaml").data.multi_label is True
    shown = run_cli("eval", "run")
    assert f"map {found['metrics']['map']:.4f}" in " ".join(shown.out.replace("│", " ").split())
    assert "average precision of" in shown.out
    rows = run_cli("eval", "run", "--json").json()["per_class"]
    assert [row["class"] for row in rows] == list(COLOURS)
    assert sum(row["average_precision"] for row in rows) / 3 == pytest.approx(found["metrics"]["map"])
    assert "no confusion matrix" in run_cli("eval", "run", "--plot", "confusion.svg").message
    assert not Path("run/confusion.csv").exists()


def test_predictions_are_all_labels_over_one_half(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    out = tmp_path / "found.csv"
    told = run_cli("eval", "run", "--predict", "photos", "--out", out, "--json").json()
    rows, wanted = (list(csv.DictReader(file.open())) for file in (out, Path("photos/labels.csv")))
    assert list(rows[0]) == ["file", "labels", "probabilities"]
    right = sum(
        set(row["labels"].split()) == set(want["labels"].split()) for row, want in zip(rows, wanted, strict=True)
    )
    assert right > 0.9 * len(rows)
    assert told["classes"] == {name: sum(name in row["labels"].split() for row in rows) for name in told["classes"]}
    for row in rows:
        numbers = [float(number) for number in row["probabilities"].split()]
        assert len(numbers) == len(row["labels"].split())
        assert numbers == sorted(numbers, reverse=True)
        assert all(number > 0.5 for number in numbers)


def test_a_run_predicts_where_its_data_are_gone(place: Path, cli: Cli) -> None:
    write_colours(Path("others"), 3)
    assert cli("eval", place / "run", "--predict", "others", "--out", "found.csv").code == 0
    assert Path("found.csv").read_text().startswith("file,labels,probabilities")


def test_a_resumed_run_equals_an_uninterrupted_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write_colours(Path("photos"), 60)
    Path("colours.yaml").write_text(RECIPE)
    words = ("train", "colours.yaml", "data.mixup=0.4", "data.rand_augment=5", "train.steps=6", "eval.every=3",
             "train.checkpoint_every=3", "--quiet", "--out")  # fmt: skip
    assert cli(*words, "whole").code == 0
    stop_at(monkeypatch, 5, lose_power)
    assert cli(*words, "run").code != 0
    assert cli(*words, "run", "--resume", "auto").code == 0
    one, other = (Path(name, "adapter.safetensors").read_bytes() for name in ("whole", "run"))
    assert one == other


def test_the_metric_is_that_of_scikit_learn() -> None:
    task = MultiLabel.__new__(MultiLabel)
    logits, labels = torch.randn(40, 3), (torch.rand(40, 3) < 0.4).float()
    labels[:, 1] = 0  # a class without images does not count
    wanted = average_precision_score(labels[:, [0, 2]].numpy(), logits[:, [0, 2]].numpy(), average="macro")
    found = task.metrics(logits, labels)
    assert found["map"] == pytest.approx(wanted)
    assert found["loss"] == pytest.approx(nn.BCEWithLogitsLoss()(logits, labels).item())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.balance=true", "data.balance: cannot balance images with several labels"),
        ("data.name=digits", "data.multi_label: 'digits' is not a folder of images"),
    ],
)
def test_what_does_not_go_with_several_labels_is_one_clear_error(
    word: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    result = run_cli("train", "colours.yaml", "data.multi_label=true", word, "--out", "other")
    assert result.code == 2
    assert message in result.message
    assert not Path("other").exists()


@pytest.mark.slow
def test_the_recipe_that_init_writes_a_dry_run_a_preview_and_a_report_take_labels(place: Path, cli: Cli) -> None:
    write_colours(Path("photos"), 20)
    assert cli("init", "--model", "glyphs_vit", "--data", "photos", "--out", "mine.yaml").code == 0
    assert "3 classes, 16 training images" in Path("mine.yaml").read_text()
    assert cli("train", "mine.yaml", "--dry-run").code == 0
    seen = cli("preview", "mine.yaml", "--count", "9", "--json").json()["labels"]
    assert all(set(labels.split(", ")) <= {*COLOURS, "no label"} for labels in seen)
    assert cli("report", place / "run", "--out", "report.html").code == 0
    assert "mAP" in Path("report.html").read_text()
    assert build_for_training(load_recipe("mine.yaml")).params["head"] == 3 * 64 + 3
