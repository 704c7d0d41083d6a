"""The shipped pipeline: prompts that no training image had together are drawn as they say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from superlora_cli.data.captioned_glyphs import NUMBERS, every_caption
from superlora_cli.models.embedded import ASSETS, PIPELINES

FOLDER = ASSETS / "glyphs_text"


def test_it_is_the_one_whose_making_is_told_and_small() -> None:
    about = json.loads(FOLDER.with_suffix(".json").read_text())
    files = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}
    assert PIPELINES == ("glyphs_text",)
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == about["sha256"]
    assert sum(map(len, files.values())) <= 8_000_000


@pytest.mark.slow
def test_held_out_prompts_are_drawn_as_digits_that_the_classifier_reads(tmp_path: Path) -> None:
    import torch
    from PIL import Image
    from torchvision.transforms.functional import normalize, pil_to_tensor

    from superlora_cli.models.build import build
    from superlora_cli.recipe.schema import ModelSection
    from tests.conftest import run_cli

    held_out = [words for words in every_caption() if words.held_out][::9]  # 20 of them, all digits
    (tmp_path / "prompts.txt").write_text("".join(f"{words}\n" for words in held_out))
    how = ("--steps", "20", "--guidance", "3", "--out", tmp_path / "images", "--batch-size", "20")
    assert run_cli("generate", "glyphs_text", "--prompts", tmp_path / "prompts.txt", *how).code == 0
    judge = build(ModelSection(name="digits_classifier", head="frozen"), classes=None)
    files = sorted((tmp_path / "images" / "images").iterdir())
    images = torch.stack([pil_to_tensor(Image.open(file)) for file in files]) / 255
    with torch.no_grad():
        found = judge.model.eval()(normalize(images, judge.mean, judge.std)).argmax(1).tolist()
    wanted = [NUMBERS.index(words.number) for words in held_out]
    right = sum(one == other for one, other in zip(found, wanted, strict=True))
    assert right >= 0.9 * len(wanted)
