"""Tiny random language models of transformers' own classes, one of every family, whose tokens are bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from superlora_cli.models.embedded import ASSETS

SMALL = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 128}  # fmt: skip
ENDS = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 257}
GROUPED = {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", SMALL | GROUPED),
    "Qwen": ("Qwen3", SMALL | GROUPED),
    "Gemma": ("Gemma3Text", SMALL | GROUPED | {"sliding_window": 8,
                                               "layer_types": ["sliding_attention", "full_attention"]}),
    "GPT-2": ("GPT2", {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "GPT-NeoX": ("GPTNeoX", SMALL | {"intermediate_size": 48}),
    "Phi": ("Phi", SMALL | {"intermediate_size": 48}),
}  # fmt: skip

READING = SMALL | {"intermediate_size": 48}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("Bert", READING),
    "RoBERTa": ("Roberta", READING | {"max_position_embeddings": 258 + 128}),  # the first are never used
    "DistilBERT": ("DistilBert", {"vocab_size": 258, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
                                  "max_position_embeddings": 128}),
    "ModernBERT": ("ModernBert", READING | {"cls_token_id": None, "sep_token_id": None}),
}  # fmt: skip


def configuration(family: str) -> Any:
    """The configuration of a tiny model."""
    name, arguments = (FAMILIES | ENCODERS)[family]
    return getattr(transformers, f"{name}Config")(**arguments, **ENDS)


def made(family: str) -> Any:
    """A tiny model with random weights, always the same; large enough that its answers vary."""
    torch.manual_seed(0)
    kind = transformers.AutoModelForMaskedLM if family in ENCODERS else transformers.AutoModelForCausalLM
    model = kind.from_config(configuration(family)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def saved(family: str, folder: Path) -> Path:
    """The folder of a tiny model."""
    made(family).save_pretrained(folder)
    for file in (ASSETS / "sums_llama").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder
