"""Adapters of other programs are told apart wherever one of ours is wanted, with what reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from superlora_cli.models.embedded import ASSETS
from tests.conftest import Cli

KINDS: dict[str, tuple[tuple[str, ...], dict[str, str], str, str]] = {
    "PEFT": (
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",),
        {"format": "pt"},
        "a PEFT adapter",
        "superlora import",
    ),
    "PEFT's LoKr": (("base_model.model.layers.0.q_proj.lokr_w1",), {}, "a PEFT adapter", "superlora import"),
    "Kohya": (
        ("lora_unet_mid_block_attn.lora_down.weight", "lora_unet_mid_block_attn.alpha"),
        {"ss_network_module": "networks.lora"},
        "a Kohya LoRA file",
        "superlora import",
    ),
    "Kohya, bare": (("lora_te_text_model_q_proj.lora_down.weight",), {}, "a Kohya LoRA file", "superlora import"),
    "LyCORIS, LoKr": (("lora_unet_mid_block_attn.lokr_w1",), {}, "a LyCORIS file", "superlora import"),
    "LyCORIS, LoHa": (
        ("lora_unet_mid_block_attn.hada_w1_a",),
        {"ss_network_module": "lycoris.kohya"},
        "a LyCORIS file",
        "superlora import",
    ),
    "diffusers": (("unet.down_blocks.0.attn.to_q.lora_A.weight",), {}, "a diffusers LoRA file", "superlora import"),
    "diffusers, older": (("unet.mid.to_q_lora.down.weight",), {}, "a diffusers LoRA file", "superlora import"),
    "weights": (("blocks.0.attn.qkv.weight",), {"format": "pt"}, "not a superlora adapter", "superlora train wrote"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["merge", "inspect", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_adapter_is_named_with_what_reads_it(kind: str, command: str, cli: Cli) -> None:
    names, metadata, what, advice = KINDS[kind]
    save_file({name: torch.zeros(2, 2) for name in names}, "foreign.safetensors", metadata)
    words = ("--base", ASSETS / "glyphs_vit.safetensors", "--out", "out.safetensors") if command == "merge" else ()
    result = cli(command, "foreign.safetensors", *words)
    assert result.code == 2
    assert result.message.startswith("superlora: foreign.safetensors: ")
    assert what in result.message
    assert advice in result.message
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("command", ["merge", "inspect", "eval"])
def test_a_folder_of_peft_is_named_too(command: str, cli: Cli) -> None:
    Path("peft").mkdir()
    Path("peft/adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({KINDS["PEFT"][0][0]: torch.zeros(2, 2)}, "peft/adapter_model.safetensors")
    result = cli(command, "peft", *(("--out", "out.safetensors") if command == "merge" else ()))
    assert result.code == 2
    assert "peft: a PEFT adapter, not a superlora adapter (convert it with superlora import" in result.message
