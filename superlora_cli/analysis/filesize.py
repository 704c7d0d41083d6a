"""How large an adapter file will be, to the byte, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from superlora_cli.adapter.header import Header, sealed
from superlora_cli.adapter.shapes import Plan, number_bytes
from superlora_cli.files import canonical
from superlora_cli.kinds import CHECKSUM

SHA256 = "0" * 64
ORDER = ("F32", "BF16", "U8")  # in which safetensors lays out tensors, those of one dtype by their names


def stored_bytes(
    plan: Plan,
    *,
    patterns: Sequence[str],
    base: str,
    head: Mapping[str, tuple[int, ...]] | None = None,
    also: Mapping[str, tuple[int, ...]] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> int:
    """Bytes of the file that `adapter.store` writes: tensors and header, without a run's metrics.

    Args:
        plan: the adapter's shapes.
        patterns: targets as the user wrote them.
        base: the model's name.
        head: shapes of a trained head by parameter name.
        also: the same for the tensors that the knob `also` trains.
        recipe: the whole recipe as plain data.
    """
    config, packed = plan.config, plan.config.has_levels
    metadata = Header(
        config,
        tuple(patterns),
        SHA256,
        {"name": base, "sha256": SHA256, "dtype": "float32"},
        recipe or {},
        shapes=plan.tensors if packed else {},
    ).written()
    header: dict[str, Any] = {"__metadata__": sealed({**metadata, CHECKSUM: SHA256})}
    whole = {f"head.{name}": shape for name, shape in (head or {}).items()}
    whole |= {f"also.{name}": shape for name, shape in (also or {}).items()}
    kind = "U8" if packed else "F32" if config.bits is None else "BF16"
    tensors = [("F32", name, shape, 4 * math.prod(shape)) for name, shape in whole.items()]
    for name, shape in plan.tensors.items():
        size = number_bytes(shape, config.bits)
        tensors.append((kind, name, (size,) if packed else shape, size))
    tensors += [("U8", name, shape, math.prod(shape)) for name, shape in plan.packed_positions.items()]
    at = 0
    for dtype, name, shape, size in sorted(tensors, key=lambda each: (ORDER.index(each[0]), each[1])):
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    length = len(canonical(header))
    return 8 + length + -length % 8 + at
