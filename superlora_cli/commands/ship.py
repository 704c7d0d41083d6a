"""Copy the result of a pretraining run into the package: `python -m superlora_cli.commands.ship RUN`."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import superlora_cli
from superlora_cli.data import docstrings
from superlora_cli.files import write_atomic, write_json
from superlora_cli.models.embedded import ASSETS, EMBEDDED, LANGUAGE
from superlora_cli.weights.small import read_safetensors, safetensors_bytes


def ship(run: Path) -> Path:
    """Make the weights of a finished run those of the embedded base in its recipe, and write their provenance."""
    tensors, metadata = read_safetensors(run / "model.safetensors")
    recipe = json.loads(metadata["superlora.model_recipe"])
    name = recipe["model"]["name"]
    content = safetensors_bytes(tensors, {"format": "pt"})
    folder = name in LANGUAGE
    target = ASSETS / name / "model.safetensors" if folder else ASSETS / EMBEDDED[name].weights
    write_atomic(target, content)
    provenance: dict[str, Any] = {
        "made_by": f"superlora train recipes/pretrain_{name}.yaml",
        "superlora": superlora_cli.__version__,
        "recipe": recipe,
        "metrics": json.loads(metadata["superlora.metrics"]),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    if folder:
        provenance["data"] = {
            "sums": "made, from seed 0",
            docstrings.NAME: {"what": docstrings.WHAT, "licence": "PSF-2.0", "sha256": docstrings.SHA256},
        }
    write_json(ASSETS / f"{name}.json" if folder else target.with_suffix(".json"), provenance)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the finished pretraining run")
    print(ship(parser.parse_args().run))
