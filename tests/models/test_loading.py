"""A file of weights is read as timm reads pretrained ones, in the forms that people have, and said in a line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from superlora_cli.errors import MismatchError
from superlora_cli.models.base import Base
from superlora_cli.models.build import build
from superlora_cli.recipe.schema import ModelSection
from tests.conftest import Cli

VIT = "vit_tiny_patch16_224"
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 4}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

State = dict[str, Tensor]


def made(name: str = VIT, classes: int = 5, **changes: Any) -> nn.Module:
    """The model whose weights are in the files."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=classes, **{**SMALL, **changes}).eval()


def loaded(file: Path, name: str = VIT, **changes: Any) -> Base:
    """The base of a recipe that names a file, for images of half the size."""
    kwargs = {**SMALL, "img_size": 16, **changes}
    return build(ModelSection(name=name, checkpoint=str(file), kwargs=kwargs), classes=3)


def test_position_embeddings_are_resampled_as_timm_does(tmp_path: Path) -> None:
    file = tmp_path / "base.safetensors"
    save_file(made().state_dict(), file)
    base = loaded(file)
    overlay = {"file": str(file), "num_classes": 5}
    pretrained = timm.create_model(
        VIT, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **{**SMALL, "img_size": 16}
    )
    features = base.model.eval().forward_features(IMAGES)  # type: ignore[operator]
    assert torch.equal(features, pretrained.eval().forward_features(IMAGES))
    assert base.note == (
        f"{file}: resampled pos_embed from [1, 65, 32] to [1, 17, 32]; left out head.bias, head.weight"
    )


def test_a_matching_file_is_accepted_silently(tmp_path: Path) -> None:
    model = made(img_size=16)
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    kwargs = {**SMALL, "num_classes": 5, "img_size": 16}
    section = ModelSection(name=VIT, checkpoint=str(tmp_path / "base.safetensors"), head="frozen", kwargs=kwargs)
    base = build(section, classes=None)
    assert base.note is None
    assert torch.equal(base.model.eval()(IMAGES), model(IMAGES))


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def lightning(state: State) -> Any:
    return {"state_dict": prefixed("model.backbone.", state), "epoch": 3, "pytorch-lightning_version": "2.5"}


def dino(state: State) -> Any:
    body = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    head = {"head.mlp.0.weight": torch.zeros(4, 32)}
    return {"student": prefixed("module.backbone.", {name: 0 * tensor for name, tensor in body.items()}),
            "teacher": prefixed("backbone.", body) | head, "epoch": 3}  # fmt: skip


FORMS: dict[str, tuple[Callable[[State], Any], str]] = {
    "state_dict": (lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1)}, "took 'state_dict'"),
    "model": (lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 1}, "took 'model'"),
    "ema": (
        lambda state: {"model": {name: 0 * tensor for name, tensor in state.items()}, "model_ema": state},
        "took 'model_ema'",
    ),
    "module": (lambda state: prefixed("module.", state), "stripped 'module.'"),
    "compiled": (lambda state: {"model": prefixed("_orig_mod.module.", state)}, "stripped '_orig_mod.module.'"),
    "lightning": (lightning, "took 'state_dict'; stripped 'model.backbone.'"),
    "dino": (dino, "took 'teacher'; stripped 'backbone.'; left out head.mlp.0.weight"),
    "text tower": (
        lambda state: prefixed("visual.trunk.", state) | {"text.token_embedding.weight": torch.zeros(9, 4)},
        "stripped 'visual.trunk.'; left out text.token_embedding.weight",
    ),
    "other heads": (
        lambda state: state | {"decoder.0.weight": torch.zeros(3, 3), "mask_token": torch.zeros(1, 1, 32)},
        "left out",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [16, 32])
def test_common_checkpoint_layouts_are_accepted_and_reported(form: str, size: int, tmp_path: Path) -> None:
    wrap, says = FORMS[form]
    model = made(img_size=size)
    torch.save(wrap(model.state_dict()), tmp_path / "base.pth")
    base = loaded(tmp_path / "base.pth")
    assert says in str(base.note)
    for name, tensor in base.model.state_dict().items():
        if not name.startswith("head") and (name != "pos_embed" or size == 16):
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_convolutional_base_is_taken_too(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=5)
    torch.save({"state_dict": prefixed("module.", model.state_dict())}, tmp_path / "base.pth.tar")
    base = build(ModelSection(name="resnet18", checkpoint=str(tmp_path / "base.pth.tar")), classes=3)
    assert torch.equal(base.model.state_dict()["layer4.1.conv2.weight"], model.state_dict()["layer4.1.conv2.weight"])
    assert base.model.state_dict()["fc.weight"].shape == (3, 512)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: made(depth=3), "blocks.2.norm1.weight is [32] in the file and missing in the model"),
        (lambda: made(depth=1), "blocks.1.norm1.weight is missing in the file and [32] in the model"),
        (lambda: made(embed_dim=64), "cls_token is [1, 1, 64] in the file and [1, 1, 32] in the model"),
        (lambda: timm.create_model("resnet18"), "is missing in the file"),
    ],
)
def test_another_architecture_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    torch.save(change().state_dict(), tmp_path / "base.pth")
    with pytest.raises(MismatchError) as caught:
        loaded(tmp_path / "base.pth")
    assert says in str(caught.value)


def test_a_frozen_head_has_to_be_in_the_file(tmp_path: Path) -> None:
    state = made(img_size=16).state_dict()
    torch.save({name: tensor for name, tensor in state.items() if "head" not in name}, tmp_path / "base.pth")
    section = ModelSection(
        name=VIT, checkpoint=str(tmp_path / "base.pth"), head="frozen", kwargs={**SMALL, "img_size": 16}
    )
    with pytest.raises(MismatchError, match=r"head\.weight is missing in the file"):
        build(section, classes=None)


def test_dinov2_names_are_left_to_timm(tmp_path: Path) -> None:
    name, changes = "vit_small_patch14_reg4_dinov2", {"img_size": 16}
    model = made(name, 0, **changes)
    state = dict(model.state_dict())
    whole = torch.cat([torch.zeros(1, 1, 32), state.pop("pos_embed")], 1)
    state |= {"register_tokens": state.pop("reg_token"), "pos_embed": whole, "mask_token": torch.zeros(1, 32)}
    torch.save({"teacher": prefixed("backbone.", state)}, tmp_path / "dinov2.pth")
    base = loaded(tmp_path / "dinov2.pth", name, **changes)
    assert torch.equal(base.model.eval().forward_features(IMAGES), model.forward_features(IMAGES))  # type: ignore[operator]


def test_a_run_reports_how_it_read_the_file_and_is_evaluated_and_merged(cli: Cli) -> None:
    torch.save({"model": made(depth=1).state_dict()}, "base.pth")
    kwargs = {**SMALL, "depth": 1, "img_size": 16}
    words = (f"model.name={VIT}", f"model.kwargs={kwargs}", "model.checkpoint=base.pth", "model.head=new",
             "train.steps=1", "train.checkpoint_every=1")  # fmt: skip
    result = cli("train", "quickstart", *words, "--out", "run", "--json")
    assert result.code == 0, result.err
    assert "base.pth: took 'model'; resampled pos_embed from [1, 65, 32] to [1, 17, 32]" in result.err
    assert "resampled pos_embed" in Path("run/log.txt").read_text()
    assert cli("eval", "run", "--json").json()["metrics"]["accuracy"] == result.json()["metrics"]["accuracy"]
    assert cli("merge", "run", "--out", "merged.safetensors").code == 0


@pytest.mark.parametrize("name", ["sums_llama", "glyphs_vit"])
def test_weights_in_half_precision_stay_so_and_run(name: str, tmp_path: Path) -> None:
    file = tmp_path / "half.safetensors"
    whole = build(ModelSection(name=name, head="frozen"), classes=None).model
    save_file({key: tensor.bfloat16().clone() for key, tensor in whole.state_dict().items()}, file)
    model = build(ModelSection(name=name, head="frozen", checkpoint=str(file)), classes=None).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    found = model(torch.tensor([[1, 2, 3]])).logits if name == "sums_llama" else model(IMAGES)
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
