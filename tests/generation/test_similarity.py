"""Similarities of generated images by DINO and CLIP: what transformers' own calls give, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Dinov2Config,
    Dinov2Model,
)

from superlora_cli.errors import UsageError
from superlora_cli.generation.image_sets import ImageSet
from superlora_cli.generation.similarity import clip_similarity, dino_similarity
from tests.conftest import Cli
from tests.pipelines import clip_tokenizer

CPU, SIDE = torch.device("cpu"), 28
PROMPTS = ("a seven", "a dog", "a seven")


def drawn(tmp_path: Path, seed: int, count: int) -> list[Path]:
    draw = torch.Generator().manual_seed(seed)
    files = [tmp_path / f"{seed}-{number}.png" for number in range(count)]
    for file in files:
        to_pil_image(torch.randint(0, 256, (3, 16, 16), generator=draw, dtype=torch.uint8)).save(file)
    return files


def pixels(files: Sequence[Path]) -> list[torch.Tensor]:
    return [pil_to_tensor(Image.open(file)) for file in files]


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    size = {"shortest_edge": SIDE}
    BitImageProcessor(size=size, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder, words = tmp_path_factory.mktemp("clip"), clip_tokenizer()
    small = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
    image = {**small, "image_size": SIDE, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=8)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(images, words).save_pretrained(folder)
    return folder


def test_dino_is_the_mean_over_all_pairs(dino: Path, tmp_path: Path) -> None:
    made, real = drawn(tmp_path, 0, 3), drawn(tmp_path, 1, 2)
    model, processor = Dinov2Model.from_pretrained(dino).eval(), BitImageProcessor.from_pretrained(dino)
    with torch.no_grad():
        ours, theirs = (model(**processor(pixels(side), return_tensors="pt"))[0][:, 0] for side in (made, real))
    expected = functional.cosine_similarity(ours[:, None], theirs[None], dim=-1).mean()
    found = dino_similarity(str(dino), ImageSet("made", made, None), ImageSet("real", real, None), CPU)
    assert found == pytest.approx(float(expected), abs=1e-5)
    same = ImageSet("one", made[:1], None)
    assert dino_similarity(str(dino), same, same, CPU) == pytest.approx(1, abs=1e-5)


def test_clip_is_the_mean_over_images_and_their_own_prompts(clip: Path, tmp_path: Path) -> None:
    made = drawn(tmp_path, 0, 3)
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    with torch.no_grad():
        given = processor(text=list(PROMPTS), images=pixels(made), padding=True, return_tensors="pt")
        scores = model(**given).logits_per_image / model.logit_scale.exp()
    found = clip_similarity(str(clip), ImageSet("made", made, None, PROMPTS), CPU)
    assert found == pytest.approx(float(scores.diagonal().mean()), abs=1e-5)


def test_what_is_missing_is_one_line(dino: Path, tmp_path: Path) -> None:
    made = drawn(tmp_path, 0, 1)
    with pytest.raises(UsageError, match="the images have no prompts"):
        clip_similarity(str(dino), ImageSet("made", made, None), CPU)
    with pytest.raises(UsageError, match="reads no text"):
        clip_similarity(str(dino), ImageSet("made", made, None, ("a",)), CPU)
    with pytest.raises(UsageError, match="cannot be loaded"):
        clip_similarity(str(tmp_path), ImageSet("made", made, None, ("a",)), CPU)


def test_similarities_need_no_extractor(cli: Cli, dino: Path, tmp_path: Path) -> None:
    for name, count in (("made", 3), ("photos", 1)):
        (tmp_path / name).mkdir()
        drawn(tmp_path / name, count, count)
    words = ("eval", "made", "--against", "./photos", "--extractor", "none")
    found = cli(*words, "--dino", str(dino), "--json").json()
    assert found["metrics"].keys() == {"dino_similarity"}
    assert "DINO, to the real images" in cli(*words, "--dino", str(dino)).out
    refused = cli(*words)
    assert (refused.code, "add --dino MODEL or --clip MODEL" in refused.message) == (2, True)


@pytest.mark.slow
def test_prompts_are_measured_from_the_command_line(cli: Cli, dino: Path, clip: Path) -> None:
    digits = ("--against", "digits:test", "--extractor", "digits", "--dino", str(dino), "--json")
    words = (*digits, "--num", "24", "--steps", "6", "--guidance", "3", "--out", "made")
    told = cli("eval", "glyphs_text", "data.name=digits", *words, "--clip", str(clip))
    assert told.code == 0, told.err
    found = told.json()
    assert found["task"] == "text-to-image"
    assert found["generated"]["prompts"][0].startswith("a handwritten ")
    assert found["metrics"]["class_accuracy"] >= 0.3  # of ten classes
    assert found["metrics"]["fid"] > 0
    assert -1 <= found["metrics"]["clip_similarity"] <= 1
    folder = cli("eval", "made", *digits).json()
    photos = Path("photos")
    photos.mkdir()
    for number, size in enumerate([(40, 30), (64, 64)] * 12):
        to_pil_image(torch.full((3, *size), number * 10, dtype=torch.uint8)).save(photos / f"{number}.png")
    assert (
        cli("eval", "made", "--against", str(photos), "--extractor", "digits", "--json").json()["reference"]["n"] == 24
    )
    for name in ("fid", "class_accuracy", "dino_similarity"):
        assert folder["metrics"][name] == found["metrics"][name]
    assert cli("eval", "glyphs_text", *words, "--sampler", "ddim").code == 2
