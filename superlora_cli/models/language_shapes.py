"""Language models of the catalogue: transformers' class of configuration, and the arguments that give their shapes."""

from __future__ import annotations

from typing import Any


def _llama(width: int, depth: int, heads: int, hidden: int, *, tied: bool, vocabulary: int = 128_256) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "intermediate_size": hidden,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


def _qwen(width: int, depth: int, heads: int, hidden: int, *, tied: bool) -> dict[str, Any]:
    return {**_llama(width, depth, heads, hidden, tied=tied, vocabulary=151_936), "head_dim": 128}


def _gemma(width: int, depth: int, hidden: int) -> dict[str, Any]:
    wide = {"num_key_value_heads": 1, "head_dim": 256}
    return {**_llama(width, depth, 4, hidden, tied=True, vocabulary=262_144), **wide}


def _phi(
    width: int, depth: int, heads: int, hidden: int, groups: int, vocabulary: int, *, tied: bool = False
) -> dict[str, Any]:
    found = _llama(width, depth, heads, hidden, tied=tied, vocabulary=vocabulary)
    return {**found, "num_key_value_heads": groups, "pad_token_id": None}


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.2-1b": ("Llama", _llama(2048, 16, 32, 8192, tied=True)),
    "llama-3.2-3b": ("Llama", {**_llama(3072, 28, 24, 8192, tied=True), "head_dim": 128}),
    "llama-3.1-8b": ("Llama", _llama(4096, 32, 32, 14_336, tied=False)),
    "llama-3.1-70b": ("Llama", _llama(8192, 80, 64, 28_672, tied=False)),
    "qwen3-0.6b": ("Qwen3", _qwen(1024, 28, 16, 3072, tied=True)),
    "qwen3-1.7b": ("Qwen3", _qwen(2048, 28, 16, 6144, tied=True)),
    "qwen3-4b": ("Qwen3", _qwen(2560, 36, 32, 9728, tied=True)),
    "qwen3-8b": ("Qwen3", _qwen(4096, 36, 32, 12_288, tied=False)),
    "gemma-3-270m": ("Gemma3Text", _gemma(640, 18, 2048)),
    "gemma-3-1b": ("Gemma3Text", _gemma(1152, 26, 6912)),
    "mistral-7b-v0.3": ("Mistral", _llama(4096, 32, 32, 14_336, tied=False, vocabulary=32_768)),
    "phi-2": ("Phi", _phi(2560, 32, 32, 10_240, 32, 51_200)),
    "phi-3.5-mini": ("Phi3", _phi(3072, 32, 32, 8192, 32, 32_064)),
    "phi-4-mini": ("Phi3", _phi(3072, 32, 24, 8192, 8, 200_064, tied=True)),
    "phi-4": ("Phi3", _phi(5120, 40, 40, 17_920, 10, 100_352)),
}
