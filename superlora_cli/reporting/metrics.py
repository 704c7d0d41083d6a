"""The metrics that a report knows, and their mean and spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from superlora_cli.table import Table


@dataclass(frozen=True)
class Metric:
    """What a number measures.

    Attributes:
        higher: whether higher is better.
        part: whether it is a fraction, in [0, 1]: a loss of quality is then a difference, otherwise a ratio.
        of_images: whether it is measured on generated images.
    """

    name: str
    label: str
    higher: bool = False
    part: bool = False
    of_images: bool = True

    def holds(self, value: float, reference: float, tolerance: float) -> bool:
        """Whether `value` is at most `tolerance` worse than `reference`: absolutely for fractions, else relatively.

        >>> METRICS["accuracy"].holds(0.97, 0.98, 0.01), METRICS["fid"].holds(10.2, 10.0, 0.01)
        (True, False)
        """
        worse = reference - value if self.higher else value - reference
        return worse <= tolerance * (1 if self.part else abs(reference)) + 1e-12  # 0.98 − 0.97 is 0.01

    def text(self, value: float) -> str:
        """The number as text.

        >>> METRICS["accuracy"].text(0.97), METRICS["fid"].text(12.3456)
        ('0.970', '12.35')
        """
        return f"{value:.3f}" if self.part else f"{value:#.4g}".removesuffix(".")


METRICS: Table[Metric] = Table(
    "metric",
    {
        metric.name: metric
        for metric in (
            Metric("accuracy", "test accuracy", higher=True, part=True, of_images=False),
            Metric("map", "test mAP", higher=True, part=True, of_images=False),
            Metric("exact_match", "exact match", higher=True, part=True, of_images=False),
            Metric("bits_per_byte", "bits per byte", of_images=False),
            Metric("loss", "test loss", of_images=False),
            Metric("fid", "FID"),
            Metric("is_l1", "IS-l1"),
            Metric("is_l1_pooled", "IS-l1, pooled features"),
            Metric("kid", "KID"),
            Metric("msid", "MSID"),
            Metric("precision", "precision", higher=True, part=True),
            Metric("recall", "recall", higher=True, part=True),
            Metric("class_accuracy", "class accuracy", higher=True, part=True),
        )
    },
)


@dataclass(frozen=True)
class Spread:
    """A metric over seeds; `std` is the sample's standard deviation, 0 for a single value."""

    mean: float
    std: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Of the finite values; None where there are none."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return None
        std = statistics.stdev(finite) if len(finite) > 1 else 0.0
        return cls(statistics.fmean(finite), std, min(finite), max(finite), len(finite))
