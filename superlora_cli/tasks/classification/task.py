"""Image classification: cross-entropy, accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.data.batches import Batch
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks.classification.confusion import confusion_matrix
from superlora_cli.tasks.classification.confusion_table import ConfusionTable
from superlora_cli.tasks.images import ImageTask
from superlora_cli.training.run import CONFUSION_FILE


class Classification(ImageTask):
    """The task as the training loop sees it, and its evaluation."""

    measure = "accuracy"

    @staticmethod
    def objective(model: nn.Module, recipe: Recipe, batch: Batch) -> Tensor:
        """Mean cross-entropy, with the recipe's label smoothing."""
        images, labels = batch
        return functional.cross_entropy(model(images).float(), labels, label_smoothing=recipe.train.label_smoothing)

    @property
    def guessing(self) -> float:
        """Every class is as likely as any other."""
        return math.log(self.splits.classes)

    @property
    def output_names(self) -> list[str]:
        """A name for every output of the model: numbers beyond the known classes."""
        outputs: Any = self.model.num_classes
        return [*self.class_names, *map(str, range(len(self.class_names), outputs))]

    def check_classes(self) -> None:
        """Every class needs an output of the model."""
        outputs: Any = self.model.num_classes
        if self.splits.classes > outputs:
            hint = "model.head: new, or rows of the pretrained one for every class"
            message = f"{self.splits.classes} classes in '{self.recipe.data.name}', {outputs} outputs of the model"
            raise UsageError(message, where="model.head", hint=hint)

    def better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        """Higher accuracy; between equal ones, lower loss."""
        return (new["accuracy"], -new["loss"]) > (old["accuracy"], -old["loss"])

    def evaluate(self, split: str) -> dict[str, float]:
        """Accuracy (a fraction) and mean cross-entropy on a whole split."""
        return self.judge(split)[0]

    def judged(self, split: str) -> tuple[dict[str, float], dict[str, str]]:
        """The metrics of `evaluate`, and the confusion matrix for the run's folder."""
        metrics, matrix = self.judge(split)
        table = ConfusionTable.of_seen(self.output_names, matrix.numpy())
        return metrics, {CONFUSION_FILE: table.to_csv()}

    def judge(self, split: str) -> tuple[dict[str, float], Tensor]:
        """The metrics of `evaluate`, and the confusion matrix (outputs, outputs) int64."""
        logits, labels = self.predict(split)
        predicted = logits.argmax(-1)
        metrics = {
            "accuracy": (predicted == labels).double().mean().item(),
            "loss": functional.cross_entropy(logits, labels).item(),
        }
        return metrics, confusion_matrix(predicted, labels, logits.shape[1])

    @torch.no_grad()
    def predict(self, split: str) -> Batch:
        """Logits (n, classes) float32 and labels (n,) of a whole split, on the CPU; every process does its share.

        Raises:
            UsageError: the split has no image. RunError: the model gives NaN or Inf.
        """
        found = []
        with self.built.kept():
            for inputs, labels in self.batches_of(split):
                with self.processes.autocast():
                    found.append((self.model(inputs).float(), labels))
        count = len(self.splits.named(split))  # type: ignore[arg-type]
        logits, labels = (self.processes.gather(torch.cat(parts), count) for parts in zip(*found, strict=True))
        self.check_outputs(logits)
        return logits.cpu(), self.numbers(labels.cpu())
