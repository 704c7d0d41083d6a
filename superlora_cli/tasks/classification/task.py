"""Image classification: cross-entropy, accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.data.batches import Batch
from superlora_cli.data.known import has_several_labels
from superlora_cli.errors import UsageError
from superlora_cli.opening.build import Built
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks.classification.confusion import confusion_matrix, per_class
from superlora_cli.tasks.classification.confusion_table import ConfusionTable
from superlora_cli.tasks.images import ImageTask, Prediction, names_of, outputs_of, size_refused
from superlora_cli.tasks.teaching import divergence
from superlora_cli.tasks.work import Judgement
from superlora_cli.training.run import CONFUSION_FILE

LIKELIEST = 5  # classes among which top-5 accuracy looks for the right one


class Classification(ImageTask):
    """The task as the training loop sees it, and its evaluation."""

    measure = "accuracy"
    confuses = True
    predicted: ClassVar[tuple[str, ...]] = ("class", "probability", "second", "second_probability")

    distance = staticmethod(divergence)

    @classmethod
    def objective(cls, model: nn.Module, recipe: Recipe, batch: Batch) -> Tensor:
        """The mean loss of the labels, with the recipe's label smoothing."""
        images, labels = batch
        return cls.error(model(images).float(), labels, recipe.train.label_smoothing)

    @staticmethod
    def error(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """The mean cross-entropy of logits (B, C)."""
        return functional.cross_entropy(outputs, labels, label_smoothing=smoothing)

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of the labels, or what a teacher makes of it."""
        if self.teacher is None:
            return super().loss(batch)
        images, labels = self.to_device(batch)
        with size_refused(self.built.base.image_size):
            outputs = self.model(images).float()
        told = self.teacher.answers(self.teacher.built.model, images)
        labelled = self.error(outputs, labels, self.recipe.train.label_smoothing)
        return self.teacher.loss(labelled, outputs, told, self.distance).mean()

    def unlike(self, other: Built) -> str | None:
        one, two = self.built.base, other.base
        if (one.image_size, one.mean, one.std) != (two.image_size, two.mean, two.std):
            return "images (model.kwargs, or data.image_size)"
        same = outputs_of(other.model) == self.outputs and other.class_names in ((), tuple(self.class_names))
        if not same:
            return "classes"
        return None if has_several_labels(other.recipe.data) == has_several_labels(self.recipe.data) else "labels"

    @staticmethod
    def predictions(outputs: Tensor, names: Sequence[str]) -> Iterator[Prediction]:
        """The two likeliest classes of every image.

        Raises:
            UsageError: there is one class only.
        """
        if len(names) < 2:
            raise UsageError("the model has one class, and nothing to tell it from")
        top = outputs.softmax(-1).topk(2)
        for (one, other), (first, second) in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            yield Prediction([names[first]], (names[first], f"{one:.6f}", names[second], f"{other:.6f}"))

    @property
    def guessing(self) -> float:
        """The loss if all classes are equally likely."""
        return math.log(self.splits.classes)

    @property
    def output_names(self) -> list[str]:
        """A name for every output of the model: its number if it has no known class."""
        return names_of(self.class_names, self.outputs)

    def check_classes(self) -> None:
        """Check that the model has an output for every class."""
        if self.splits.classes > self.outputs:
            hint = "set model.head: new, or select a row of the pretrained head for every class"
            message = f"'{self.recipe.data.name}' has {self.splits.classes} classes, the model {self.outputs} outputs"
            raise UsageError(message, where="model.head", hint=hint)

    def evaluate(self, split: str) -> dict[str, float]:
        """Accuracy (a fraction) and mean cross-entropy on a whole split."""
        return self.metrics(*self.predict(split))

    def judged(self, split: str) -> tuple[dict[str, float], dict[str, str]]:
        """The metrics of `judge`, and the confusion matrix for the run folder."""
        found = self.judge(split)
        if found.confusion is None:
            return found.metrics, {}
        seen = ConfusionTable.of_seen(found.confusion.names, found.confusion.counts)
        return found.metrics, {CONFUSION_FILE: seen.to_csv()}

    def judge(self, split: str) -> Judgement:
        """The metrics of `evaluate`, top-5 accuracy if there are more than five classes, the accuracy of every class,
        and the confusion matrix."""
        logits, labels = self.predict(split)
        metrics = self.metrics(logits, labels)
        if logits.shape[1] > LIKELIEST:
            among = (logits.topk(LIKELIEST).indices == labels[:, None]).any(-1)
            metrics[f"top{LIKELIEST}"] = among.double().mean().item()
        matrix = confusion_matrix(logits.argmax(-1), labels, logits.shape[1])
        names = self.output_names
        return Judgement(metrics, per_class(matrix, names), ConfusionTable(tuple(names), matrix.numpy()))

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Metrics over all images, from the results of `predict`."""
        return {
            "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
            "loss": functional.cross_entropy(logits, labels).item(),
        }

    @torch.no_grad()
    def predict(self, split: str) -> Batch:
        """Logits (n, classes) float32 and labels (n,) of a whole split, on the CPU; every process does its share.

        Raises:
            UsageError: the split has no images. RunError: the model gives NaN or Inf.
        """
        found = []
        with self.built.kept():
            for inputs, labels in self.batches_of(split):
                with size_refused(self.built.base.image_size), self.processes.autocast():
                    found.append((self.model(inputs).float(), labels))
        count = len(self.splits.named(split))
        logits, labels = (self.processes.gather(torch.cat(parts), count) for parts in zip(*found, strict=True))
        self.check_outputs(logits)
        return logits.cpu(), labels.cpu()
