"""How large an adapter file will be, to the byte, without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from superlora_cli.adapter.shapes import Plan

SHA256 = "0" * 64


def stored_bytes(
    plan: Plan,
    *,
    patterns: Sequence[str],
    base: str,
    head: Mapping[str, tuple[int, ...]] | None = None,
    also: Mapping[str, tuple[int, ...]] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> int:
    """Bytes of the file that `adapter.store` writes: float32 tensors and header, without a run's metrics.

    Args:
        plan: the adapter's shapes.
        patterns: targets as the user wrote them.
        base: the model's name.
        head: shapes of a trained head by parameter name.
        also: the same for the tensors that the knob `also` trains.
        recipe: the whole recipe as plain data.
    """
    shapes = plan.tensors | {f"head.{name}": shape for name, shape in (head or {}).items()}
    shapes |= {f"also.{name}": shape for name, shape in (also or {}).items()}
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "pt",
            "superlora.format_version": plan.config.format_version,
            "superlora.config": plan.config.to_json(),
            "superlora.targets": _json({"patterns": list(patterns), "sha256": SHA256}),
            "superlora.base": _json({"name": base, "sha256": SHA256, "dtype": "float32"}),
            "superlora.prng": "numpy.RandomState/sha256",
            "superlora.recipe": _json(recipe or {}),
            "superlora.metrics": "{}",
            "superlora.checksum": SHA256,
        }
    }
    at = 0
    for name, shape in sorted(shapes.items()):  # the order in which safetensors lays out tensors of one dtype
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    length = len(_json(header))
    return 8 + length + -length % 8 + at


def _json(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
