"""A new head is trained, whatever it is made of; a model without one says so."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from safetensors.torch import load_file

from superlora_cli.errors import UsageError
from superlora_cli.models.build import build
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.schema import ModelSection, Recipe
from tests.conftest import Cli

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 16, "patch_size": 4}
DISTILLED = "deit_tiny_distilled_patch16_224"
WORDS = (f"model.name={DISTILLED}", f"model.kwargs={SMALL}", "model.pretrained=false", "model.head=new",
         "train.steps=2", "train.threads=1", "train.checkpoint_every=1", "eval.every=1")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        (DISTILLED, ["head", "head_dist"]),
        ("efficientformer_l1", ["head", "head_dist"]),
        ("efficientvim_m4_dist", ["heads", "heads_dist"]),
        ("crossvit_tiny_240", ["head"]),
        ("volo_d1_224", ["head", "aux_head"]),
        ("resnet18", ["fc"]),
        ("convnext_tiny", ["head.fc"]),
    ],
)
def test_every_head_of_a_model_is_trained(name: str, heads: list[str]) -> None:
    base = build(ModelSection(name=name, pretrained=False), classes=41, weights=False)
    outside = [
        parameter for parameter in base.trained_head if not any(parameter.startswith(f"{head}.") for head in heads)
    ]
    assert outside == []
    assert {head for head in heads for name in base.trained_head if name.startswith(f"{head}.")} == set(heads)
    of_classes = {name for name, parameter in base.model.named_parameters() if parameter.shape[0] == 41}
    assert of_classes <= set(base.trained_head)


def test_two_heads_are_trained_saved_restored_and_merged(cli: Cli) -> None:
    trained = cli("train", "quickstart", *WORDS, "--out", "run", "--json").json()
    assert trained["params"]["head"] == 2 * (10 * 32 + 10)
    stored = load_file("run/adapter.safetensors")
    assert {name for name in stored if name.startswith("head.")} == {
        f"head.{head}.{kind}" for head in ("head", "head_dist") for kind in ("weight", "bias")
    }
    assert cli("eval", "run", "--json").json()["metrics"]["accuracy"] == trained["metrics"]["accuracy"]
    assert cli("merge", "run", "--out", "merged.safetensors").code == 0
    timm.create_model(DISTILLED, num_classes=10, checkpoint_path="merged.safetensors", **SMALL)


def test_rows_are_selected_of_all_heads() -> None:
    section = ModelSection.model_validate(
        {"name": DISTILLED, "pretrained": False, "head": {"select": [3, 1]}, "kwargs": SMALL}
    )
    torch.manual_seed(0)
    chosen = build(section, classes=2).model.eval()
    torch.manual_seed(0)
    whole = build(section.model_copy(update={"head": "frozen"}), classes=2).model.eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(chosen(images), whole(images)[:, [3, 1]])


def test_a_model_without_a_classifier_is_refused() -> None:
    with pytest.raises(UsageError, match="deepseek_vit_412m_enc has no classifier to replace by a new head"):
        build(ModelSection(name="deepseek_vit_412m_enc", pretrained=False), classes=3, weights=False)


def recipe(name: str, targets: list[str]) -> Recipe:
    return recipe_from_dict(
        {
            "model": {"name": name, "pretrained": False, "head": "new"},
            "data": {"name": "pets", "num_classes": 3},
            "adapter": {"method": "lora", "targets": targets},
            "train": {"steps": 1, "optimizer": {"lr": 0.1}},
        },
        "a test",
    )


@pytest.mark.parametrize(
    ("name", "within"), [("efficientvit_b0", "head.classifier.4"), ("levit_128", "head.linear"), ("resnet18", "fc")]
)
def test_a_new_head_is_not_a_target(name: str, within: str) -> None:
    with pytest.raises(UsageError, match=f"{re.escape(within)} is a new head, which is trained fully"):
        build_for_training(recipe(name, [within]), weights=False)
    if name != "resnet18":  # which has no other linear layer
        built = build_for_training(recipe(name, ["all-linear"]), weights=False)
        assert built.adapter
        assert within not in [target.module for target in built.adapter.targets]
