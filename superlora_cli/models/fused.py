"""Where q, k and v are in the fused weights of transformers' language models.

GPT-2 stores three equal blocks of rows, which is what a weight with such a name has unless it is listed here. Some
models have fewer keys and values than queries, some store q, k and v of every head together, and CodeGen, which was
trained on four devices, those of every fourth of the heads, in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

from superlora_cli.models.patterns import Rows

Block = tuple[str, int]  # which of q, k and v, and how many rows


def _per_head(layer: Any) -> list[Block]:
    size, heads = layer.head_size if hasattr(layer, "head_size") else layer.head_dim, _heads(layer)
    return [(part, size) for _ in range(heads) for part in "qkv"]


def _heads(layer: Any) -> int:
    if hasattr(layer, "num_heads"):
        return int(layer.num_heads)
    return int((layer if hasattr(layer, "num_attention_heads") else layer.config).num_attention_heads)


def _grouped(layer: Any) -> list[Block]:
    size, config = layer.head_dim, layer.config
    return [("q", config.num_attention_heads * size), *((part, config.num_key_value_heads * size) for part in "kv")]


def _falcon(layer: Any) -> list[Block]:
    size = layer.head_dim
    if layer.new_decoder_architecture:
        return [("q", layer.num_heads // layer.num_kv_heads * size), ("k", size), ("v", size)] * layer.num_kv_heads
    return [("q", layer.num_heads * size), ("k", size), ("v", size)] if layer.multi_query else _per_head(layer)


def _big_code(layer: Any) -> list[Block]:
    if layer.is_cross_attention:
        return [("k", layer.embed_dim), ("v", layer.embed_dim)]
    return [("q", layer.embed_dim), *((part, layer.kv_dim) for part in "kv")] if layer.multi_query else _per_head(layer)


def _code_gen(layer: Any) -> list[Block]:
    return [(part, layer.embed_dim // 4) for _ in range(4) for part in "qvk"]


def _dbrx(layer: Any) -> list[Block]:
    size = layer.head_dim
    return [("q", layer.num_heads * size), *((part, layer.num_key_value_heads * size) for part in "kv")]


def _gpt2(layer: Any) -> list[Block]:
    return [(part, layer.embed_dim) for part in ("kv" if layer.is_cross_attention else "qkv")]


LAYOUTS: dict[str, Callable[[Any], list[Block]]] = {
    "BloomAttention": _per_head,
    "CodeGenAttention": _code_gen,
    "DbrxAttention": _dbrx,
    "FalconAttention": _falcon,
    "GPT2Attention": _gpt2,
    "GPTBigCodeAttention": _big_code,
    "GPTNeoXAttention": _per_head,
    "GPTNeoXJapaneseAttention": _per_head,
    "MiniMaxLightningAttention": _per_head,
    "PersimmonAttention": _per_head,
    "Phi3Attention": _grouped,
    "Phi4MultimodalAttention": _grouped,
}
NAMES = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")


def rows_of(name: str, layer: Any) -> Rows:
    """The rows of q, k and v in a weight of an attention layer, where they are not three equal blocks; else ().

    Args:
        name: of the weight in the layer.
    """
    layout = LAYOUTS.get(type(layer).__name__)
    return in_order(layout(layer)) if layout and name in NAMES else ()


def in_order(blocks: Iterable[Block]) -> Rows:
    """(part, first row, row after the last) of blocks that follow each other.

    >>> in_order([("q", 4), ("k", 2), ("v", 2)])
    (('q', 0, 4), ('k', 4, 6), ('v', 6, 8))
    """
    blocks = list(blocks)
    stops = list(accumulate(size for _, size in blocks))
    return tuple((part, stop - size, stop) for (part, size), stop in zip(blocks, stops, strict=True))
