"""Copy the result of a pretraining run into the package: `python -m superlora_cli.models.ship RUN`."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import superlora_cli
from superlora_cli.files import write_atomic, write_json
from superlora_cli.models.embedded import ASSETS, EMBEDDED
from superlora_cli.weights.small import read_safetensors, safetensors_bytes


def ship(run: Path) -> Path:
    """Make the weights of a finished run those of the embedded base in its recipe, and write their provenance."""
    tensors, metadata = read_safetensors(run / "model.safetensors")
    recipe = json.loads(metadata["superlora.model_recipe"])
    name = recipe["model"]["name"]
    content = safetensors_bytes(tensors, {"format": "pt"})
    target = ASSETS / EMBEDDED[name].weights
    write_atomic(target, content)
    provenance = {
        "made_by": f"superlora train recipes/pretrain_{name}.yaml",
        "superlora": superlora_cli.__version__,
        "recipe": recipe,
        "metrics": json.loads(metadata["superlora.metrics"]),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(target.with_suffix(".json"), provenance)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the finished pretraining run")
    print(ship(parser.parse_args().run))
