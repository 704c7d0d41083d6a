"""model.safetensors, the result of a run without an adapter: weights, recipe, and a checksum over both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from superlora_cli.adapter.header import classes_metadata, read_classes
from superlora_cli.errors import UsageError
from superlora_cli.kinds import MODEL_MARK
from superlora_cli.recipe.schema import Recipe
from superlora_cli.weights import checksum
from superlora_cli.weights.small import read_safetensors, safetensors_bytes

METRICS = "superlora.metrics"


@dataclass(frozen=True)
class StoredModel:
    """The contents of a model file, except the weights.

    Attributes:
        recipe: as plain data.
        classes: names of the outputs; () if they only have numbers.
    """

    recipe: Mapping[str, Any]
    classes: tuple[str, ...]


def model_bytes(
    state: Mapping[str, Tensor], recipe: Recipe, metrics: Mapping[str, Any], classes: tuple[str, ...]
) -> bytes:
    """The bytes of the file, in canonical form."""
    metadata = {
        "format": "pt",
        MODEL_MARK: recipe.to_json(),
        METRICS: json.dumps(dict(metrics), sort_keys=True),
        **classes_metadata(classes),
    }
    return safetensors_bytes(state, checksum.with_checksum(state, metadata))


def read_model(path: Path) -> StoredModel | None:
    """Read a safetensors file as a model file; None if it is something else.

    Raises:
        UsageError: the file is damaged or was changed. A file without a checksum, such as merged weights of such a
            base, is accepted.
    """
    tensors, metadata = read_safetensors(path)
    if MODEL_MARK not in metadata:
        return None
    if checksum.CHECKSUM in metadata:
        checksum.check(tensors, metadata, path)
    try:
        return StoredModel(dict(json.loads(metadata[MODEL_MARK])), read_classes(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"damaged metadata: {error}", where=str(path), hint="copy it again, or train again") from None
