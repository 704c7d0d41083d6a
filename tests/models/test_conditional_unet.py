"""diffusers' U-Net with cross-attention, whose q and v differ in width, as a base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

import superlora_cli
from superlora_cli.errors import UsageError
from superlora_cli.models.targets import expand

NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
STEPS = torch.tensor([3, 700])
TEXT = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def noise(model: UNet2DConditionModel) -> Tensor:
    return model(NOISY, STEPS, encoder_hidden_states=TEXT).sample


def test_short_names_mean_self_and_cross_attention() -> None:
    targets = expand(unet(), ["q", "v"])
    assert len(targets) == 16  # 4 transformer blocks × self and cross × q and v
    shapes = {target.module.removeprefix(BLOCK + "."): target.shape for target in targets[:4]}
    assert shapes == {"attn1.to_q": (16, 16), "attn1.to_v": (16, 16), "attn2.to_q": (16, 16), "attn2.to_v": (16, 12)}
    assert [target.module for target in expand(unet(), ["mlp"])][:2] == [f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2"]
    assert len(expand(unet(), ["o"])) == 8


@pytest.mark.parametrize(
    "knobs",
    [
        {"method": "lorta", "rank": 2},
        {"groups": 3, "order": 2, "fold": "regular", "rank": 2},
        {"groups": 2, "order": 5, "fold": "regular", "rank": 1},
        {"method": "lora", "rank": 2},
        {"method": "lora", "groups": "layer", "rank": 2},
        {"method": "lonkr", "rank": 1},
        {"groups": 1, "order": 2, "fold": "none", "rank": 2},
    ],
    ids=str,
)
def test_trained_saved_loaded_and_merged(knobs: dict[str, object], tmp_path: Path) -> None:
    model = unet()
    with torch.no_grad():
        before = noise(model)
    adapter = superlora_cli.attach(model, ["q", "v"], **knobs)
    assert torch.equal(noise(model), before)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.03)
    losses = []
    for _ in range(6):
        loss = (noise(model) - NOISY).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        adapted = noise(model)
    assert not torch.allclose(adapted, before, atol=1e-4)

    superlora_cli.save(model, tmp_path / "adapter.safetensors")
    fresh = unet()
    superlora_cli.load(fresh, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        assert torch.equal(noise(fresh), adapted)
        superlora_cli.detach(fresh, merge=True)
        fresh.save_pretrained(tmp_path / "merged")
        plain = UNet2DConditionModel.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(noise(plain), adapted, rtol=0, atol=1e-5)


def test_unequal_widths_cannot_be_stacked() -> None:
    with pytest.raises(UsageError, match="different shapes cannot be stacked"):
        superlora_cli.attach(unet(), ["q", "v"], "lotr", rank=2)
