"""A checkpoint like a language model's and an adapter for it, for which no recipe builds a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.store import BaseDigest, StoredAdapter
from superlora_cli.adapter.targets import Target

METADATA = {"format": "pt", "author": "somebody"}
ROLES = ("q", "k", "v", "o")  # the order of a model; files have k, o, q, v
TARGETS = [
    Target(f"model.layers.{layer}.self_attn.{role}_proj", 0, 16, (16, 16), True)
    for layer in range(12)  # the tenth comes after the ninth, which names do not sort
    for role in ROLES
]


def checkpoint(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Twelve blocks of width 16, with embeddings, norms and a buffer of integers."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"model.embed_tokens.weight": torch.randn(40, 16, generator=generator)}
    for layer in range(12):
        block = f"model.layers.{layer}"
        tensors |= {f"{block}.self_attn.{r}_proj.weight": torch.randn(16, 16, generator=generator) for r in ROLES}
        tensors[f"{block}.mlp.up_proj.weight"] = torch.randn(24, 16, generator=generator)
        tensors[f"{block}.input_layernorm.weight"] = torch.ones(16)
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return cast | {"model.steps": torch.tensor(7), "model.norm.weight": torch.rand(16, generator=generator)}


def adapter(base: Mapping[str, Tensor], **knobs: Any) -> StoredAdapter:
    """An adapter of all attention weights, LoRTA in two groups unless `knobs` say otherwise, moved off its start."""
    settings = {"order": 3, "rank": 2, "groups": 2, **knobs}
    config = AdapterConfig.from_knobs(None, **settings)
    generator = torch.Generator().manual_seed(1)
    shapes = plan(config, [target.flat for target in TARGETS]).tensors
    factors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    digest = BaseDigest()
    for target in TARGETS:
        digest.add(target, 0, base[f"{target.module}.weight"])
    sha256, dtype = digest.found
    return StoredAdapter.of(config, TARGETS, factors, patterns=ROLES, base=("small", sha256, dtype))


def save_shards(folder: Path, shards: Sequence[Mapping[str, Tensor]], metadata: Mapping[str, str]) -> Path:
    """A folder of shards with their index, as the large checkpoints of the hub are; returns the index."""
    folder.mkdir()
    places = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(dict(tensors), folder / name, dict(metadata))
        places |= dict.fromkeys(tensors, name)
    size = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}))
    return index


def thirds(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in three parts, in order."""
    names = list(tensors)
    size = -(-len(names) // 3)
    return [{name: tensors[name] for name in names[at : at + size]} for at in range(0, len(names), size)]


def prepare(dtype: torch.dtype = torch.float32, **knobs: Any) -> StoredAdapter:
    """base.safetensors, the same in three shards in big/, and adapter.safetensors, in the current folder."""
    base = checkpoint(dtype)
    stored = adapter(base, **knobs)
    stored.save(Path("adapter.safetensors"), force=True)
    save_file(base, "base.safetensors", METADATA)
    save_shards(Path("big"), thirds(base), METADATA)
    return stored
