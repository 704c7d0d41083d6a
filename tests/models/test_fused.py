"""The rows of q, k and v in fused weights of language models are those that the models themselves compute with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, Phi4MultimodalConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalAttention

from superlora_cli.models.conv1d import as_linear
from superlora_cli.models.fused import rows_of
from superlora_cli.models.targets import expand

SMALL = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
MLP = {"intermediate_size": 32}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", SMALL),
    "codegen": ("CodeGen", {"vocab_size": 32, "n_embd": 32, "n_layer": 1, "n_head": 8, "rotary_dim": 4}),
    "dbrx": ("Dbrx", {"vocab_size": 32, "d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 16,
                      "attn_config": {"kv_n_heads": 1, "rope_theta": 10_000.0, "clip_qkv": 8.0},
                      "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1}}),
    "falcon": ("Falcon", SMALL | {"multi_query": False, "new_decoder_architecture": False}),
    "falcon, one key": ("Falcon", SMALL | {"multi_query": True, "new_decoder_architecture": False}),
    "falcon, new": ("Falcon", SMALL | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "gpt-bigcode": ("GPTBigCode", {"vocab_size": 32, "n_embd": 32, "n_layer": 1, "n_head": 4}),
    "gpt-bigcode, many keys": (
        "GPTBigCode", {"vocab_size": 32, "n_embd": 32, "n_layer": 1, "n_head": 4, "multi_query": False}),
    "gpt-neox": ("GPTNeoX", SMALL | MLP),
    "gpt-neox-japanese": ("GPTNeoXJapanese", SMALL | {"intermediate_multiple_size": 1}),
    "minimax": ("MiniMax", SMALL | MLP | {"num_key_value_heads": 2, "head_dim": 8, "block_size": 4,
                                          "num_local_experts": 2, "layer_types": ["linear_attention"]}),
    "mpt": ("Mpt", {"vocab_size": 32, "d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 16}),
    "persimmon": ("Persimmon", SMALL | MLP),
    "phi-3": ("Phi3", SMALL | MLP | {"num_key_value_heads": 2, "pad_token_id": 0}),
}  # fmt: skip
TEXT = torch.tensor([[1, 5, 9, 3, 7, 2]])


def model_of(name: str) -> Any:
    """A model of one layer with random weights, without biases."""
    kind, arguments = CONFIGS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**arguments)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.mul_(0 if key.endswith("bias") else 8 if value.dim() > 1 else 1)
    return model


@torch.no_grad()
def fill(model: Any, part: str, scale: float) -> None:
    """Replace the rows of q, k or v by random ones, or by zeros."""
    for target in expand(model, [part]):
        rows = model.get_submodule(target.module).weight[target.start : target.stop]
        rows.copy_(scale * torch.randn(rows.shape))


@torch.no_grad()
def moves(model: Any, part: str) -> bool:
    """Whether what a model says depends on the rows of q, k or v."""
    before = model(input_ids=TEXT).logits
    fill(model, part, 1.0)
    return not torch.equal(model(input_ids=TEXT).logits, before)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_part_is_where_the_model_has_it(name: str) -> None:
    rows = [range(target.start, target.stop) for part in "qkv" for target in expand(model_of(name), [part])]
    fused = expand(model_of(name), ["q"])[0].module
    assert sorted(row for some in rows for row in some) == list(range(model_of(name).get_submodule(fused).out_features))
    model = model_of(name)
    assert all(moves(model, part) for part in "qkv")
    fill(model, "q", 0.0)  # all tokens are looked at equally, or not at all
    assert not moves(model, "k")
    model = model_of(name)
    fill(model, "v", 0.0)  # nothing is seen, wherever it looks
    assert not any(moves(model, part) for part in "qk")


def test_the_fused_weight_of_attention_to_an_encoder_has_no_queries() -> None:
    small = {"vocab_size": 32, "n_embd": 48, "n_layer": 1, "n_head": 4}
    for kind in ("GPT2", "GPTBigCode"):
        config = getattr(transformers, f"{kind}Config")(**small, add_cross_attention=True)
        if kind == "GPTBigCode":
            config.multi_query = False
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        as_linear(model)
        second = [(found.start, found.stop) for found in expand(model, ["v"]) if "crossattention" in found.module]
        assert second == [(48, 96)]


def test_phi_4_multimodal_has_fewer_keys_than_queries() -> None:
    with torch.device("meta"):
        layer = Phi4MultimodalAttention(
            Phi4MultimodalConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2)
        )
    assert rows_of("qkv_proj", layer) == (("q", 0, 64), ("k", 64, 80), ("v", 80, 96))
