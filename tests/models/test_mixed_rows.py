"""Language models whose fused weights have q, k and v in an order of their own are not adapted in the wrong rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CodeGenConfig, GPTBigCodeConfig, PersimmonConfig

from superlora_cli.errors import UsageError
from superlora_cli.models.targets import expand

SMALL = {"vocab_size": 32, "n_embd": 32, "n_layer": 1, "n_head": 4}
CONFIGS = [
    GPTBigCodeConfig(**SMALL, multi_query=True),
    CodeGenConfig(**SMALL, rotary_dim=4),
    PersimmonConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_their_slices_are_refused(config: Any) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UsageError, match="does not keep q, k and v as equal blocks"):
        expand(model, ["q"])
