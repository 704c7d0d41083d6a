"""Classification of images with any number of labels: binary cross-entropy, mean average precision."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional

from superlora_cli.data.batches import Batch
from superlora_cli.errors import UsageError
from superlora_cli.tasks.classification.ranking import average_precisions
from superlora_cli.tasks.classification.task import Classification
from superlora_cli.tasks.images import Prediction
from superlora_cli.tasks.teaching import binary_divergence
from superlora_cli.tasks.work import Judgement


class MultiLabel(Classification):
    """The task as the training loop sees it, and its evaluation; every output is a separate yes or no."""

    measure = "map"
    confuses = False
    predicted = ("labels", "probabilities")  # each a list separated by spaces

    distance = staticmethod(binary_divergence)

    @staticmethod
    def error(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """The mean binary cross-entropy of logits (B, C), for labels (B, classes) in [0, 1]; the target of outputs
        beyond the classes is 0."""
        targets = functional.pad(labels, (0, outputs.shape[1] - labels.shape[1])) * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(outputs, targets)

    @staticmethod
    def labels(count: int, outputs: int) -> Tensor:
        """Placeholder labels (count, outputs)."""
        return torch.empty(count, outputs)

    @staticmethod
    def predictions(outputs: Tensor, names: Sequence[str]) -> Iterator[Prediction]:
        """The labels of every image that are likelier than not, the likeliest first."""
        for probabilities in outputs.sigmoid().tolist():
            pairs = sorted(zip(probabilities, names, strict=True), reverse=True)
            found = [(name, f"{probability:.6f}") for probability, name in pairs if probability > 0.5]
            labels = [name for name, _ in found]
            yield Prediction(labels, (" ".join(labels), " ".join(number for _, number in found)))

    @property
    def guessing(self) -> float:
        """The loss if yes and no are equally likely."""
        return math.log(2)

    def predict(self, split: str) -> Batch:
        """As for one label, with labels (n, outputs)."""
        logits, labels = super().predict(split)
        return logits, functional.pad(labels, (0, self.outputs - labels.shape[1]))

    def judge(self, split: str) -> Judgement:
        """The metrics of `evaluate`, and the average precision of every class."""
        logits, labels = self.predict(split)
        rows = [
            {"class": name, "n": int(count), "average_precision": precision}
            for name, count, precision in zip(
                self.output_names, labels.sum(0), self._precisions(logits, labels), strict=True
            )
            if precision is not None
        ]
        return Judgement(self.metrics(logits, labels), rows)

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Mean average precision over the classes that have images, and mean binary cross-entropy."""
        found = [precision for precision in self._precisions(logits, labels) if precision is not None]
        return {"map": fmean(found), "loss": functional.binary_cross_entropy_with_logits(logits, labels).item()}

    def _precisions(self, logits: Tensor, labels: Tensor) -> list[float | None]:
        if not labels.any():
            hint = "hold out more images"
            raise UsageError("none of the held-out images has a label", where="data.validation", hint=hint)
        return average_precisions(logits, labels)
