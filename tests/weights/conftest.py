"""Weights on a disk, in one file and in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


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
