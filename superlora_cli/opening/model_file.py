"""model.safetensors, the result of a run without adapter: the weights, the recipe, and a checksum over both."""

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
    """What a model file says, but for the weights.

    Attributes:
        recipe: as plain data.
        classes: what the outputs stand for; () where they are just numbered.
    """

    recipe: Mapping[str, Any]
    classes: tuple[str, ...]


def model_bytes(
    state: Mapping[str, Tensor], recipe: Recipe, metrics: Mapping[str, Any], classes: tuple[str, ...]
) -> bytes:
    """The file, canonical."""
    metadata = {
        "format": "pt",
        MODEL_MARK: recipe.to_json(),
        METRICS: json.dumps(dict(metrics), sort_keys=True),
        **classes_metadata(classes),
    }
    return safetensors_bytes(state, checksum.with_checksum(state, metadata))


def read_model(path: Path) -> StoredModel | None:
    """What a safetensors file says as a model file; None where it is something else.

    Raises:
        UsageError: the file is not whole, or not what was written. One without a checksum, as merged weights of such a
            base are, is taken as it is.
    """
    tensors, metadata = read_safetensors(path)
    if MODEL_MARK not in metadata:
        return None
    if checksum.CHECKSUM in metadata:
        checksum.check(tensors, metadata, path)
    try:
        return StoredModel(dict(json.loads(metadata[MODEL_MARK])), read_classes(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"damaged metadata: {error}", where=str(path), hint="copy or train it again") from None
