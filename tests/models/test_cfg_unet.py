"""The diffusion base is the published one, in any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from superlora_cli.errors import UsageError
from superlora_cli.models import catalogue
from superlora_cli.models.base import Base
from superlora_cli.models.build import build
from superlora_cli.models.cfg_unet import ConditionalUNet, sinusoids
from superlora_cli.models.descriptions import cfg_unet
from superlora_cli.models.embedded import EMBEDDED
from superlora_cli.models.targets import expand
from superlora_cli.recipe.schema import ModelSection

TINY: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "image_size": 8, "classes": 3, "groups": 4}
ALL_ATTENTION: dict[str, Any] = {
    "sample_size": 32, "block_out_channels": [64, 128, 128, 128], "num_class_embeds": 11,
    "down_block_types": ["AttnDownBlock2D"] * 4, "up_block_types": ["AttnUpBlock2D"] * 4,
}  # fmt: skip
TINY_DIFFUSERS: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2,
}  # fmt: skip


def tiny(**sizes: Any) -> ConditionalUNet:
    torch.manual_seed(0)
    return ConditionalUNet(**TINY | sizes)


def inputs(size: int = 8, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(count) * 200, torch.arange(count)


def unet(name: str, *, weights: bool = True, **kwargs: Any) -> Base:
    return build(ModelSection(name=name, pretrained=False, kwargs=kwargs), classes=None, weights=weights)


def test_it_has_the_published_parameters_under_the_catalogues_names() -> None:
    model = unet("cfg_unet", weights=False).model
    described = {layer.name: layer for layer in cfg_unet()}
    assert sum(parameter.numel() for parameter in model.parameters()) == 10_409_357
    assert [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)] == [
        layer.name for layer in described.values() if layer.shape
    ]
    for name, layer in described.items():
        module = model.get_submodule(name)
        assert sum(parameter.numel() for parameter in module.parameters()) == layer.params
        assert not layer.shape or module.weight.shape == layer.shape  # type: ignore[union-attr]
    named = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert named == described.keys()


@pytest.mark.parametrize(("name", "kwargs"), [("cfg_unet", {}), ("diffusers", ALL_ATTENTION)])
def test_its_q_and_v_are_42_weights_in_21_attention_modules(name: str, kwargs: dict[str, Any]) -> None:
    targets = expand(unet(name, weights=False, **kwargs).model, ["q", "v"])
    assert [target.shape[0] for target in targets].count(64) == 10
    assert [target.shape[0] for target in targets].count(128) == 32
    assert sum(target.flat.elements for target in targets) == 565_248
    assert len({target.module.rpartition(".")[0] for target in targets}) == 21


def test_the_embedded_one_is_small() -> None:
    base = unet("glyphs_unet", weights=False)
    assert sum(parameter.numel() for parameter in base.model.parameters()) == 1_273_805
    assert sum(target.flat.elements for target in expand(base.model, ["q", "v"])) == 63_488
    assert (base.image_size, base.mean, base.std) == (16, (0.5,) * 3, (0.5,) * 3)
    assert "glyphs_unet" in EMBEDDED


@pytest.mark.parametrize(
    "sizes",
    [{}, {"multipliers": (1,)}, {"multipliers": (1, 2, 3), "blocks": 2}, {"channels": 9, "groups": 3}, {"classes": 1}],
    ids=str,
)
def test_any_model_size_gives_images_of_its_size(sizes: dict[str, Any]) -> None:
    model = tiny(**sizes)
    images, steps, _ = inputs(count=2)
    noise = model(images, steps, torch.tensor([0, 1]))
    assert noise.shape == images.shape
    noise.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_null_class_has_its_own_label() -> None:
    model = tiny()
    images, steps, _ = inputs(count=1)
    noises = [model(images, steps, torch.tensor([label])) for label in range(4)]
    for number, noise in enumerate(noises):
        assert all(not torch.allclose(noise, other) for other in noises[number + 1 :])
    with pytest.raises(IndexError):
        model(images, steps, torch.tensor([4]))  # class 3 of 3


def test_a_fresh_model_already_tells_classes_and_time_steps_apart() -> None:
    model = unet("glyphs_unet").model
    assert isinstance(model, ConditionalUNet)
    assert model.label(torch.arange(11)).std(dim=0).mean() > 0.5  # 0.03 with torch's own initial weights
    assert model.time(sinusoids(torch.arange(0, 1000, 50), 32)).std(dim=0).mean() > 0.3


def test_images_time_steps_and_labels_of_a_batch_do_not_mix() -> None:
    model = tiny()
    images, steps, labels = inputs()
    together = model(images, steps, labels)
    alone = torch.cat([model(images[i : i + 1], steps[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(images, steps + 1, labels), together)


def test_every_time_step_has_its_own_vector() -> None:
    vectors = sinusoids(torch.arange(1000), 64)
    assert vectors.shape == (1000, 64)
    assert torch.cdist(vectors, vectors).fill_diagonal_(1).min() > 1e-3


def test_attention_is_softmax_of_qk_over_the_root_of_the_channels() -> None:
    attention = tiny().middle[0].attn
    assert isinstance(attention, nn.Module)
    x = torch.randn(2, 16, 4, 4)
    normed = attention.norm(x)  # type: ignore[operator]
    q, k, v = (getattr(attention, part)(normed).flatten(2) for part in "qkv")  # (2, 16, 16 pixels)
    weights = torch.einsum("bci,bcj->bij", q, k).div(16**0.5).softmax(-1)
    mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
    torch.testing.assert_close(attention(x), x + attention.proj(mixed))  # type: ignore[operator]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_gradients(dropout: float) -> None:
    gradients = []
    for recompute in (False, True):
        model = tiny(dropout=dropout)
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(2)
        model(*inputs()).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(
    ("name", "kwargs", "says"),
    [
        ("cfg_unet", {"chanels": 8}, "has no argument 'chanels'.*did you mean 'channels'"),
        ("cfg_unet", {"channels": 20}, r"refuses its arguments: num_channels \(20\) must be divisible by num_groups"),
        ("cfg_unet", {"channels": "wide"}, "refuses its arguments"),
        ("cfg_unet", {"blocks": 0}, "sizes must be at least 1"),
        ("cfg_unet", {"image_size": 28}, "4 levels cannot halve images of 28 pixels evenly"),
        ("glyphs_unet", {"depth": 6}, "has no argument 'depth'"),
        ("diffusers", {"channels": 8}, "has no argument 'channels'"),
        ("diffusers", {"path": "nowhere"}, "holds no config.json"),
        ("diffusers", {"in_channels": 1}, "1 channels in, 3 out"),
    ],
)
def test_impossible_arguments_are_one_clear_error(name: str, kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        unet(name, weights=False, **kwargs)
    assert str(caught.value.where).startswith("model.kwargs")


def test_missing_weights_are_an_error() -> None:
    with pytest.raises(UsageError, match="no pretrained weights") as caught:
        build(ModelSection(name="cfg_unet"), classes=None)
    assert "model.checkpoint=FILE" in str(caught.value.hint)


def test_another_size_is_counted_without_memory(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = TINY | {"multipliers": [1, 2]}
    assert catalogue.find("cfg_unet", sizes).params == sum(parameter.numel() for parameter in tiny().parameters())
    assert "building cfg_unet" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [None, 4], ids=["unconditional", "conditional"])
def test_a_model_that_diffusers_saved_is_a_base(classes: int | None, tmp_path: Any) -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    saved = UNet2DModel(**TINY_DIFFUSERS, num_class_embeds=classes).eval()
    saved.save_pretrained(tmp_path / "unet")
    images, steps, labels = inputs()
    expected = saved(images, steps, class_labels=None if classes is None else labels).sample
    for folder in (tmp_path, tmp_path / "unet"):
        base = build(ModelSection(name="diffusers", kwargs={"path": str(folder)}), classes=None)
        assert base.image_size == 8
        assert base.model.classes == (None if classes is None else 3)
        assert torch.equal(base.model.eval()(images, steps, labels), expected)
        assert len(expand(base.model, ["q", "v"])) == 2 * (2 + 1 + 4)
