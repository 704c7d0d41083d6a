"""Adapters on Hugging Face's models: transformers with separate, unequal q and v."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

import superlora_cli
from superlora_cli.errors import MismatchError
from superlora_cli.models.targets import expand

METHODS = pytest.mark.parametrize("method", ["lora", "lorta", "lokr", "dense"])
MODELS = pytest.mark.parametrize("kind", ["vit", "llama"])


def build(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    if kind == "vit":
        return ViTForImageClassification(
            ViTConfig(image_size=16, patch_size=4, num_attention_heads=2, num_labels=3, **small)
        ).eval()
    config = LlamaConfig(vocab_size=40, num_attention_heads=4, num_key_value_heads=2, **small)
    return LlamaForCausalLM(config).eval()


def batch(kind: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        images = torch.randn(6, 3, 16, 16, generator=generator)
        return {"pixel_values": images, "labels": torch.arange(6) % 3}
    tokens = torch.randint(40, (4, 12), generator=generator)
    return {"input_ids": tokens, "labels": tokens}


def trained(kind: str, method: str, steps: int = 8) -> tuple[nn.Module, list[float]]:
    """An adapted model after a few steps, and the loss before each of them."""
    model, inputs = build(kind), batch(kind)
    rank = {} if method == "dense" else {"rank": 2}
    split = {"split_dim": 4} if method == "lokr" else {}
    superlora_cli.attach(model, ["q", "v"], method, **rank, **split)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.3, weight_decay=0)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, losses


def test_short_names_mean_the_separate_projections() -> None:
    shapes = [target.shape for target in expand(build("llama"), ["q", "v"])]
    assert shapes == [(32, 32), (16, 32)] * 2
    shapes = [target.shape for target in expand(build("vit"), ["q", "v"])]
    assert shapes == [(32, 32)] * 4
    assert len(expand(build("llama"), ["mlp"])) == 6
    assert len(expand(build("vit"), ["o"])) == 2


@METHODS
@MODELS
def test_trained_saved_loaded_and_merged(kind: str, method: str, tmp_path: Path) -> None:
    model, losses = trained(kind, method)
    assert losses[-1] < 0.98 * losses[0]
    inputs = batch(kind)
    with torch.no_grad():
        adapted = model(**inputs).logits
    assert (adapted - build(kind)(**inputs).logits).abs().max() > 1e-3
    superlora_cli.save(model, tmp_path / "adapter.safetensors")

    fresh = build(kind)
    superlora_cli.load(fresh, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        assert torch.equal(fresh(**inputs).logits, adapted)

    superlora_cli.detach(fresh, merge=True)
    fresh.save_pretrained(tmp_path / "merged")
    plain = type(fresh).from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, adapted, rtol=0, atol=1e-5)
    assert plain.state_dict().keys() == build(kind).state_dict().keys()


@MODELS
def test_gradient_checkpointing_gives_the_same_gradients(kind: str) -> None:
    model, _ = trained(kind, "lorta", steps=1)
    grads = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        model.zero_grad()
        model(**batch(kind)).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_language_model_generates_with_its_adapter() -> None:
    model, _ = trained("llama", "lorta", steps=20)
    merged, _ = trained("llama", "lorta", steps=20)
    superlora_cli.detach(merged, merge=True)
    start = batch("llama")["input_ids"][:, :2]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    found = model.generate(start, **settings)
    assert torch.equal(found, merged.generate(start, **settings))
    assert not torch.equal(found, build("llama").generate(start, **settings))


def test_another_base_is_refused(tmp_path: Path) -> None:
    model, _ = trained("llama", "lora", steps=1)
    superlora_cli.save(model, tmp_path / "adapter.safetensors")
    with pytest.raises(MismatchError, match="not the base"):
        superlora_cli.load(build("llama", seed=1), tmp_path / "adapter.safetensors")
