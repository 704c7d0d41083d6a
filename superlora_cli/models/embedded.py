"""The bases shipped with superlora."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Embedded:
    """A shipped base: an architecture, its arguments, and its weights in the package."""

    architecture: str
    arguments: Mapping[str, Any]
    classes: int
    weights: str
    image_size: int = 16  # S, in pixels


EMBEDDED = {
    "glyphs_vit": Embedded(
        "vit_tiny_patch16_224",
        {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4},
        classes=10,
        weights="glyphs_vit.safetensors",
    ),
    "digits_classifier": Embedded(
        "resnet18",
        {"layers": (1, 1, 1, 1), "channels": (32, 48, 64, 96), "stem_type": "deep", "stem_width": 16},
        classes=10,
        weights="digits_classifier.safetensors",
    ),
    "glyphs_unet": Embedded(
        "cfg_unet",
        {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "image_size": 16, "groups": 8},
        classes=10,
        weights="glyphs_unet.safetensors",
    ),
}

PIPELINES = ("glyphs_text",)  # folders of `ASSETS`, as a pipeline's save_pretrained writes them
LANGUAGE = ("sums_llama",)  # the same of language models
