"""`superlora preview` draws what training sees, with labels, and reads no weights for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from superlora_cli.tasks.classification.task import Classification
from tests.conftest import QUICK, Cli
from tests.data.test_augment import ALL
from tests.data.test_splits import write_images

DRAWN = tuple(f"data.{key}={str(value).lower()}" for key, value in ALL.items())
OWN = ("model.head=new", "data={name: photos, augment: crop_flip}", "train.batch_size=8")


@pytest.mark.parametrize("words", [("train.batch_size=8",), (*OWN, *DRAWN)], ids=["digits", "all"])
def test_a_preview_shows_what_training_sees(words: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(Path("photos"), classes="ab", count=12)
    found = cli("preview", "quickstart", *words, "--out", "grid.png", "--count", "12", "--json").json()
    seen: list[Any] = []
    plain = Classification.loss
    monkeypatch.setattr(Classification, "loss", lambda self, batch: seen.append(batch) or plain(self, batch))
    assert cli("train", *QUICK, *words, "train.steps=2", "--quiet").code == 0
    images, labels = (torch.cat(parts)[:12] for parts in zip(*seen, strict=True))
    assert (found["num"], found["image_size"], len(found["labels"])) == (12, 16, 12)
    if labels.dim() == 1:
        assert found["labels"] == [str(int(label)) for label in labels]
    else:
        assert found["labels"] == [
            ", ".join(f"{name} {share:.2f}" if share < 0.995 else name for share, name in
                      sorted(zip(row.tolist(), "ab", strict=True), reverse=True) if share >= 0.005)
            for row in labels
        ]  # fmt: skip
    wanted = ((images * 0.5 + 0.5) * 255).round().clamp(0, 255)
    grid = torch.frombuffer(bytearray(Image.open("grid.png").tobytes()), dtype=torch.uint8)
    width, height = Image.open("grid.png").size
    grid = grid.view(height, width, 3).permute(2, 0, 1)
    for index, image in enumerate(wanted):
        x, y = 4 + index % 4 * 132, 4 + index // 4 * 154 + 18
        assert torch.equal(grid[:, y : y + 128 : 8, x : x + 128 : 8].float(), image)


def test_a_preview_of_a_generation_has_images_as_they_are(cli: Cli) -> None:
    found = cli("preview", "digits_unet_lora", "--count", "3", "--json").json()
    assert (found["grid"], found["num"]) == ("preview.png", 3)


def test_a_preview_overwrites_nothing_unasked(cli: Cli) -> None:
    Path("grid.png").write_text("mine")
    result = cli("preview", "quickstart", "--out", "grid.png")
    assert (result.code, Path("grid.png").read_text()) == (2, "mine")
    assert "does not show the images of the task autoencoder" in cli("preview", "pretrain_glyphs_text_vae").message
    assert "grid.jpg: not a .png file" in cli("preview", "quickstart", "--out", "grid.jpg").message
