"""The networks whose features are compared: the Inception of 2015, and the shipped digit classifier.

Each is a feature extractor of torch-fidelity, so that `torch_fidelity.calculate_metrics(feature_extractor=...)` can use
ours too; importing this module registers it as `superlora-digits`.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from superlora_cli.data.captioned_glyphs import NUMBERS
from superlora_cli.errors import UsageError, did_you_mean, first_line
from superlora_cli.models import hub
from superlora_cli.models.build import build
from superlora_cli.models.embedded import ASSETS, EMBEDDED
from superlora_cli.progress import shows_bars
from superlora_cli.recipe.schema import ModelSection

CLASSIFIER = "digits_classifier"
OURS = "superlora-digits"  # its name in torch-fidelity
INCEPTION_HASH = URL_INCEPTION_V3.rpartition("-")[2].removesuffix(".pth")  # the first digits of the weights' SHA-256


@dataclass(frozen=True)
class Extractor:
    """A network and the two layers that metrics are computed from.

    Attributes:
        name: `inception` or `digits`.
        module: uint8 (B, 3, H, W) → (logits (B, C), features (B, d)), float32.
        weights: SHA-256 of the file with the weights.
        logits, features: names of the layers for the inception score, and for everything else.
        classes: names of the logits; () if they are not classes of a data set.
        words: words of a prompt → the class that they ask for.
    """

    name: str
    module: FeatureExtractorBase
    weights: str
    logits: str
    features: str
    classes: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)

    def asked(self, prompts: Sequence[str]) -> tuple[str, ...] | None:
        """The class that each prompt asks for; None if one does not ask for exactly one."""
        found = [{self.words[word] for word in re.findall(r"\w+", text.lower()) if word in self.words}
                 for text in prompts]  # fmt: skip
        return tuple(one for (one,) in found) if all(len(classes) == 1 for classes in found) else None


class DigitsFeatures(FeatureExtractorBase):
    """The shipped digit classifier on 8-bit RGB images of any size, resized to 16×16.

    Layers: `logits` (B, 10); `pooled` (B, 96), the input of the last, linear layer.
    """

    def __init__(self, name: str, features_list: Sequence[str], **ignored: Any) -> None:
        super().__init__(name, features_list)
        base = build(ModelSection(name=CLASSIFIER, head="frozen"), classes=None)
        self.model, self.side = base.model, base.image_size
        self.register_buffer("mean", torch.tensor(base.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(base.std).view(3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers."""
        return "logits", "pooled"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The layer that a metric of torch-fidelity uses."""
        return "logits" if metric == "isc" else "pooled"

    @staticmethod
    def can_be_compiled() -> bool:
        """Whether `torch.compile` may wrap it."""
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """An input to compile it with."""
        return torch.zeros(1, 3, 16, 16, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The requested layers, in the requested order."""
        x = images.float() / 255  # (B, 3, H, W) in [0, 1]
        x = functional.interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=True)
        model: Any = self.model
        pooled = model.forward_head(model.forward_features((x - self.mean) / self.std), pre_logits=True)  # (B, 96)
        layers = {"pooled": pooled, "logits": model.get_classifier()(pooled)}
        return tuple(layers[name] for name in self.features_list)


if OURS not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(OURS, DigitsFeatures)


def load_extractor(name: str, weights: Path | None = None) -> Extractor:
    """The extractor `inception` or `digits`, on the CPU, ready for use.

    Args:
        weights: file with Inception's weights; default: torch hub's cache, downloaded once if there is a network.

    Raises:
        UsageError: the name is unknown, or the weights are missing or wrong; the hint says where to put them.
    """
    if name not in EXTRACTORS:
        hint = did_you_mean(name, EXTRACTORS) or f"one of {', '.join(EXTRACTORS)}"
        raise UsageError(f"unknown extractor '{name}'", where="--extractor", hint=hint)
    return EXTRACTORS[name](weights)


def _digits(weights: Path | None) -> Extractor:
    if weights is not None:
        hint = "leave it out, or --extractor inception"
        raise UsageError("the digit classifier comes with its weights", where="--weights", hint=hint)
    module = create_feature_extractor(OURS, ["logits", "pooled"], cuda=False, verbose=False)
    sha256 = _sha256(ASSETS / EMBEDDED[CLASSIFIER].weights)
    digits = tuple("0123456789")
    words = dict(zip((*NUMBERS, *digits), digits * 2, strict=True))
    return Extractor("digits", module, sha256, "logits", "pooled", digits, words)


def _inception(weights: Path | None) -> Extractor:
    path = weights or _downloaded(Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name))
    if not path.is_file():
        raise UsageError("no such file", where=str(path), hint=f"download {URL_INCEPTION_V3}")
    sha256 = _sha256(path)
    if not sha256.startswith(INCEPTION_HASH):
        message = f"not the weights of Inception: SHA-256 {sha256[:8]}…, expected {INCEPTION_HASH}…"
        raise UsageError(message, where=str(path), hint=f"download {URL_INCEPTION_V3}")
    logits, features = "logits_unbiased", "2048"
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # because torch-fidelity would run code in the file
        module = create_feature_extractor(
            "inception-v3-compat",
            [logits, features],
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=str(path),
        )
    except (RuntimeError, TypeError, pickle.UnpicklingError, EOFError) as error:
        cause = first_line(error)
        raise UsageError(f"not the weights of Inception: {cause}", where=str(path)) from None
    return Extractor("inception", module, sha256, logits, features)


EXTRACTORS: dict[str, Callable[[Path | None], Extractor]] = {"inception": _inception, "digits": _digits}


def _downloaded(path: Path) -> Path:
    """The file in the cache, downloaded if it is missing and the network can be reached."""
    if path.is_file():
        return path
    cause = "the network cannot be reached"
    if hub.reachable(URL_INCEPTION_V3):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), INCEPTION_HASH, progress=shows_bars())
            return path
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            cause = str(error)
    message = f"Inception's weights are missing, and {cause}"
    hint = f"put {URL_INCEPTION_V3} there, give the file with --weights, or use --extractor digits"
    raise UsageError(message, where=str(path), hint=hint)


@cache
def _hashed(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _hashed(path, stat.st_size, stat.st_mtime_ns)
