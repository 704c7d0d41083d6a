"""Metrics of generated images against real ones: FID, IS, KID, MSID, precision and recall, from features.

All are computed by torch-fidelity (MSID by piq). Its argument order is generated first, real second, which matters for
precision. FID is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from superlora_cli.errors import MismatchError
from superlora_cli.generation import msid
from superlora_cli.generation.features import Features

# Settings that two results must share to be comparable, and their names in messages.
SHARED = {
    "extractor": "the extractor",
    "weights": "the extractor's weights",
    "layers": "the layers",
    "k": "the neighbours of precision and recall",
    "reference_sha256": "the reference images",
}

NAMES = ("fid", "is", "is_std", "is_reference", "is_l1", "is_l1_pooled", "kid", "kid_std", "msid", "msid_std",
         "msid_floor", "msid_floor_std", "precision", "recall")  # fmt: skip


@dataclass(frozen=True)
class Knobs:
    """Settings of the metrics.

    Attributes:
        seed: seed of subsets, shuffles and random vectors; torch-fidelity's default.
        k: number of neighbours for precision and recall.
        splits: number of parts that the inception score is averaged over.
        kid_subsets, kid_subset_size: as in torch-fidelity; the size is at most the number of images.
        msid_seeds: number of seeds that MSID is averaged over.
        msid_images: most images of each set that MSID is computed from.
    """

    seed: int = 2020
    k: int = 3
    splits: int = 10
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    msid_seeds: int = 5
    msid_images: int = 5000


def measure(generated: Features, reference: Features, knobs: Knobs) -> tuple[dict[str, float | None], dict[str, Any]]:
    """All metrics of `generated` against `reference`, and the settings actually used.

    Returns:
        fid; is, is_std, is_reference, is_l1 (|IS − IS of the reference|), is_l1_pooled (the same on the pooled
        features); kid, kid_std; msid, msid_std, msid_floor, msid_floor_std; precision, recall. A metric without a
        finite value, or that needs more images (`lacking`), is None.
    """
    few = lacking(len(generated), len(reference), knobs)
    size = min(knobs.kid_subset_size, len(generated), len(reference))
    seeds = range(knobs.seed, knobs.seed + knobs.msid_seeds)
    found = dict.fromkeys(NAMES, math.nan)
    if "FID" not in few:
        found["fid"] = fid(generated.pooled, reference.pooled)
    if "IS" not in few:
        score, real = (inception_score(side.logits, knobs) for side in (generated, reference))
        pooled, real_pooled = (inception_score(side.pooled, knobs) for side in (generated, reference))
        found |= {"is": score[0], "is_std": score[1], "is_reference": real[0]}
        found |= {"is_l1": abs(score[0] - real[0]), "is_l1_pooled": abs(pooled[0] - real_pooled[0])}
    if "KID" not in few:
        kid = kid_features_to_metric(
            generated.pooled, reference.pooled, kid_subsets=knobs.kid_subsets, kid_subset_size=size,
            rng_seed=knobs.seed, verbose=False,
        )  # fmt: skip
        found |= {"kid": kid["kernel_inception_distance_mean"], "kid_std": kid["kernel_inception_distance_std"]}
    points = min(knobs.msid_images, len(generated), len(reference))
    if msid.is_installed() and "MSID" not in few:
        found["msid"], found["msid_std"] = msid.msid(generated.pooled, reference.pooled, seeds, points)
        found["msid_floor"], found["msid_floor_std"] = msid.noise_floor(reference.pooled, seeds, points)
    if "precision and recall" not in few:
        prc = prc_features_to_metric(
            generated.pooled, reference.pooled, prc_neighborhood=knobs.k, save_cpu_ram=True, verbose=False
        )
        found |= {"precision": prc["precision"], "recall": prc["recall"]}
    used = {**asdict(knobs), "kid_subset_size": size, "msid_images": points, "msid_k": msid.K}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}, used


def fid(generated: Tensor, reference: Tensor) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of features (n, d) and (m, d) (Heusel et al. 2017, Eq. 6)."""
    statistics = [fid_features_to_statistics(features.double()) for features in (generated, reference)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def inception_score(logits: Tensor, knobs: Knobs) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)), p = softmax of (n, C): mean and deviation over splits (Salimans et al. 2016)."""
    score = isc_features_to_metric(logits, knobs.splits, rng_seed=knobs.seed)
    return score["inception_score_mean"], score["inception_score_std"]


def class_accuracy(logits: Tensor, asked: Sequence[str], known: Sequence[str]) -> float | None:
    """The fraction of images (n, C) classified as the requested class; None if the classifier does not know them."""
    if not set(asked) <= set(known):
        return None
    seen = [known[number] for number in logits.argmax(-1).tolist()]
    return sum(one == other for one, other in zip(asked, seen, strict=True)) / len(seen)


def notes(generated: Features, reference: Features, used: Mapping[str, Any], asked: Knobs) -> list[str]:
    """What a reader of the numbers should know, one line each."""
    few = lacking(len(generated), len(reference), asked)
    said = [f"{metric}: needs at least {least} images of each" for metric, least in few.items()]
    fewest, dimensions = min(len(generated), len(reference)), generated.pooled.shape[1]
    if "FID" not in few and fewest <= dimensions:
        said.append(f"FID of {fewest:,} images with {dimensions:,} features is biased upwards: use more images")
    if "KID" not in few and used["kid_subset_size"] < asked.kid_subset_size:
        said.append(f"KID uses subsets of all {used['kid_subset_size']:,} images, so its spread means little")
    if "IS" not in few and len(generated) != len(reference):
        said.append(f"IS compares {len(generated):,} with {len(reference):,} images, but it grows with their number")
    if not msid.is_installed():
        said.append("MSID needs piq: pip install 'superlora-cli[msid]'")
    return said


def check_comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse to compare results that were not measured in the same way.

    Args:
        one, other: the `settings` of two results.

    Raises:
        MismatchError: extractor, its weights, layers or reference differ.
    """
    for key, words in SHARED.items():
        if one.get(key) != other.get(key):
            message = f"{words} differ: {_brief(one.get(key))} and {_brief(other.get(key))}"
            raise MismatchError(message, where=key, hint="measure both in the same way")


def _brief(value: Any) -> str:
    text = " and ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) < 60 else f"{text[:8]}…"


def lacking(generated: int, reference: int, knobs: Knobs) -> dict[str, int]:
    """The metrics that so many images are too few for, with the least number that they need of each."""
    least = {"FID": 2, "IS": knobs.splits, "KID": 2, "MSID": msid.LEAST, "precision and recall": knobs.k + 1}
    return {metric: needed for metric, needed in least.items() if min(generated, reference) < needed}
