"""Encoders as transformers saves them are bases: their outputs are those of the library that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from superlora_cli.models.build import build
from superlora_cli.recipe.schema import ModelSection

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
WIDE = {**SIZE, "intermediate_size": 128}
TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 16}


def randomised(model: Any) -> Any:
    """Every tensor at random, so that none is like another or is not missed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**WIDE, layer_norm_eps=1e-6, num_labels=3))


def dinov2() -> Any:
    return transformers.Dinov2Model(transformers.Dinov2Config(**SIZE))


def registers() -> Any:
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SIZE, num_register_tokens=4))


def dinov3() -> Any:
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**WIDE, num_register_tokens=4, key_bias=False))


def clip() -> Any:
    config = transformers.CLIPVisionConfig(**WIDE, projection_dim=3, hidden_act="gelu")
    return transformers.CLIPVisionModelWithProjection(config)


def siglip() -> Any:
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**WIDE, hidden_act="gelu"))


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (vit, "vit_tiny_patch16_224", "ViT"),
        (dinov2, "vit_small_patch14_dinov2", "ViT"),
        (registers, "vit_small_patch14_reg4_dinov2", "ViT"),
        (dinov3, "vit_small_patch16_dinov3_qkvb", "DINOv3"),
        (clip, "vit_base_patch32_clip_224", "CLIP"),
        (siglip, "vit_base_patch16_siglip_224", "SigLIP"),
    ],
)
def test_what_transformers_saves_is_a_base(make: Any, name: str, says: str, tmp_path: Path) -> None:
    model = randomised(make())
    model.save_pretrained(tmp_path)
    section = ModelSection(name=name, checkpoint=str(tmp_path / "model.safetensors"), kwargs=TIMM)
    base = build(section, classes=3)
    assert f"renamed from transformers' {says}" in str(base.note)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours: Tensor = base.model.eval().forward_features(images)  # type: ignore[operator]
        theirs = model(pixel_values=images, **({"output_hidden_states": True} if make is vit else {}))
        if make is vit:
            hidden = model.vit.layernorm(theirs.hidden_states[-1])
        elif make is clip:
            hidden = model.vision_model.post_layernorm(theirs.last_hidden_state)
        else:
            hidden = theirs.last_hidden_state
        if make is siglip:
            pooled = base.model.forward_head(ours, pre_logits=True)  # type: ignore[operator]
            torch.testing.assert_close(pooled, theirs.pooler_output, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours, hidden, atol=1e-4, rtol=1e-4)
