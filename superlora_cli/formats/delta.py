"""ΔW itself as a safetensors file: a tensor for every adapted weight, with its name and shape, to add to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from superlora_cli.adapter.layers import by_module
from superlora_cli.adapter.targets import Target
from superlora_cli.formats.format import Options
from superlora_cli.formats.whole import weight_shape, whole_delta
from superlora_cli.opening.shapes_only import Stored
from superlora_cli.weights.small import safetensors_bytes


def write(adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
    """Write the file; see `format.Format.write`."""
    content = delta_file(adapter.targets, adapter.deltas(), adapter.modules, adapter.stored.base)
    options.put(out, content)
    return {"bytes": len(content), "load": f"delta = safetensors.torch.load_file({str(out)!r})"}


def delta_file(
    targets: Sequence[Target], deltas: Sequence[Tensor], modules: Mapping[str, nn.Module], base: Mapping[str, str]
) -> bytes:
    """The bytes of the file: `blocks.0.attn.qkv.weight` (out, in), float32; rows that no target covers are 0.

    Its header has `superlora.delta_of` (name and digest of the base) and `superlora.rows` (the rows adapted).

    Args:
        targets, deltas: ΔW of each target, in its shape or as (rows, columns).
        modules: modules of the base, by name; they may be on the meta device.
        base: `name` and `sha256`, as adapters store them.
    """
    tensors, rows = {}, {}
    for name, indices in by_module(targets).items():
        own = [targets[index] for index in indices]
        shape = weight_shape(modules[name])
        tensors[f"{name}.weight"] = whole_delta(own, [deltas[index] for index in indices], shape)
        rows[f"{name}.weight"] = [[target.start, target.stop] for target in own]
    metadata = {
        "format": "pt",
        "superlora.delta_of": json.dumps(dict(base), sort_keys=True),
        "superlora.rows": json.dumps(rows, sort_keys=True),
    }
    return safetensors_bytes(tensors, metadata)
