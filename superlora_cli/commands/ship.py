"""Copy the result of a pretraining run into the package: `python -m superlora_cli.commands.ship RUN`."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import superlora_cli
from superlora_cli.data import docstrings
from superlora_cli.data.captioned_glyphs import render_captioned
from superlora_cli.files import write_atomic, write_json
from superlora_cli.models.embedded import ASSETS, EMBEDDED, LANGUAGE, PIPELINES
from superlora_cli.models.pipelines import COMPONENT, VAE
from superlora_cli.opening.results import MODEL_FILE
from superlora_cli.weights.small import read_safetensors, safetensors_bytes

SCALED_BY = 2000  # images whose latents give the autoencoder's scale
PRINTED = (
    "printed digits with captions, superlora_cli/data/captioned_glyphs.py, rendered from the fonts that matplotlib "
    "ships: DejaVu (Bitstream Vera licence), STIX (SIL Open Font Licence) and Computer Modern (BaKoMa licence)"
)


def ship(run: Path) -> Path:
    """Make the weights of a finished run those of the embedded base in its recipe, and write their provenance.

    Returns:
        The file, or the folder of a pipeline.
    """
    tensors, metadata = read_safetensors(run / MODEL_FILE)
    recipe = json.loads(metadata["superlora.model_recipe"])
    name = recipe["model"]["name"]
    about = {
        "made_by": f"superlora train recipes/pretrain_{name}.yaml",
        "superlora": superlora_cli.__version__,
        "recipe": recipe,
        "metrics": json.loads(metadata["superlora.metrics"]),
    }
    if name in PIPELINES:
        return _ship_parts(name, tensors, about)
    target = ASSETS / name / "model.safetensors" if name in LANGUAGE else ASSETS / EMBEDDED[name].weights
    about["sha256"] = _write(target, tensors)
    if name in LANGUAGE:
        about["data"] = {
            "sums": "made, from seed 0",
            docstrings.NAME: {"what": docstrings.WHAT, "licence": "PSF-2.0", "sha256": docstrings.SHA256},
        }
    write_json(ASSETS / f"{name}.json", about)
    return target


def _ship_parts(name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """The components of a pipeline that a run has trained; its scale, too, for an autoencoder."""
    folder, asked = ASSETS / name, about["recipe"]["model"]["kwargs"][COMPONENT]
    first, *beside = [asked] if isinstance(asked, str) else asked
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in (first, *beside)}
    for key, tensor in tensors.items():
        head, _, rest = key.partition(".")
        parts[head if head in beside else first][rest if head in beside else key] = tensor
    for part, own in parts.items():
        (file,) = (folder / part).glob("*.safetensors")
        _write(file, own)
    if first == VAE:
        _write_scale(folder / VAE)
    file = ASSETS / f"{name}.json"
    known = json.loads(file.read_text(encoding="utf-8")).get("parts", {})
    suffix = f"_{VAE}" if first == VAE else ""
    known[", ".join(parts)] = {**about, "made_by": f"superlora train recipes/pretrain_{name}{suffix}.yaml"}
    provenance = {
        "parts": known,
        "shape": "python benchmarks/small_pipeline.py FOLDER",
        "data": PRINTED,
        "sha256": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    write_json(file, provenance)
    return folder


@torch.no_grad()
def _write_scale(folder: Path) -> None:
    """Latents times `scaling_factor` have variance 1."""
    from diffusers import AutoencoderKL

    images, _ = render_captioned("train", SCALED_BY)
    latents = AutoencoderKL.from_pretrained(folder).encode(images.float() / 127.5 - 1).latent_dist.mean
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["scaling_factor"] = 1 / latents.std().item()
    write_atomic(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n", force=True)


def _write(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a file of weights; its SHA-256."""
    content = safetensors_bytes(tensors, {"format": "pt"})
    write_atomic(file, content, force=True)
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the finished pretraining run")
    print(ship(parser.parse_args().run))
