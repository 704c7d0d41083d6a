"""What tasks on images have in common: their format, batches, predictions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from superlora_cli.data.batches import Batch, evaluation_batches, steps_of_images
from superlora_cli.data.splits import DATA_SEED, Look, Splits, load_splits
from superlora_cli.errors import UsageError
from superlora_cli.opening.build import Built
from superlora_cli.progress import with_bar
from superlora_cli.recipe.schema import DataSection, Recipe
from superlora_cli.tasks.reading import empty, read_training
from superlora_cli.tasks.work import Work
from superlora_cli.training.processes import Processes


class Prediction(NamedTuple):
    """What is predicted of an image, and how the columns say it."""

    labels: list[str]
    values: tuple[str, ...]


@contextmanager
def size_refused(size: int) -> Iterator[None]:
    """Inside, an assertion by which a timm model refuses images of this size becomes an error of one line.

    Raises:
        UsageError: the model does not accept images of this size.
    """
    try:
        yield
    except AssertionError as error:
        hint = "the model's own size, or model.kwargs"
        raise UsageError(refusal(size, error), where="data.image_size", hint=hint) from None


def refusal(size: int, error: Exception) -> str:
    """One line on an image size that a model rejects; some models raise an error without a message."""
    return f"the model does not accept images of {size} × {size}" + (f": {error}" if str(error) else "")


def outputs_of(model: nn.Module) -> int:
    """Number of outputs of a classifier; 0 for any other model."""
    found: int = getattr(model, "num_classes", 0)
    return found


def names_of(known: Sequence[str], outputs: int) -> list[str]:
    """A name for every output of a model: numbers beyond the known classes.

    >>> names_of(["cat", "dog"], 3)
    ['cat', 'dog', '2']
    """
    return [*known, *map(str, range(len(known), outputs))]


class ImageTask(Work):
    """A task on images, except for its loss and its score.

    Attributes:
        predicted: columns of a table of predictions, after `file`.
        look: the image format that the model expects.
    """

    predicted: ClassVar[tuple[str, ...]] = ()

    def __init__(self, built: Built, processes: Processes) -> None:
        base = built.base
        self.look = Look(base.image_size, base.mean, base.std)
        super().__init__(built, processes)

    def match_classes(self) -> None:
        numbers = self.numbers_of(self.splits.class_names)
        self._relabel = None if numbers == list(range(len(numbers))) else torch.tensor(numbers)

    def known_classes(self) -> int:
        return self.outputs

    def read(self, recipe: Recipe) -> Splits:
        """The data of a recipe."""
        return load_splits(self.data(recipe), self.look, seed=DATA_SEED)

    def steps_of_epoch(self) -> int:
        """The number of steps in which all training images are seen once.

        Raises:
            UsageError: there are fewer images than batches per step.
        """
        return steps_of_images(len(self.splits.train), self.recipe.train.batch_size, self.share)

    @staticmethod
    def data(recipe: Recipe) -> DataSection:
        """The recipe's data section, with the defaults of this task."""
        return recipe.data

    @property
    def outputs(self) -> int:
        """Number of outputs of a classifier, else 0."""
        return outputs_of(self.model)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """This process's batches of steps `start` ... `stop` − 1 of the shuffled training split."""
        processes = self.processes
        pin, own = processes.device.type == "cuda", (processes.index, processes.count)
        return read_training(self.recipe, self.splits, start, stop, outputs=self.outputs, process=own, pin=pin)

    def amount(self, batch: Batch) -> int:
        """The number of images, B."""
        return len(batch[1])

    @staticmethod
    def objective(model: nn.Module, recipe: Recipe, batch: Batch) -> Tensor:
        """The mean loss of `model` on a batch on the same device, a scalar."""
        raise NotImplementedError

    @classmethod
    def rehearsal(cls, built: Built) -> tuple[Callable[[], Any], Callable[[Any], Tensor]]:
        """To estimate memory: a function that makes a batch on torch's default device, and the loss of such a batch."""
        recipe, model, size = built.recipe, built.model, built.base.image_size
        count, outputs = recipe.train.batch_size, outputs_of(model)

        def loss(batch: Batch) -> Tensor:
            with size_refused(size):
                return cls.objective(model, recipe, batch)

        return lambda: (torch.empty(count, 3, size, size), cls.labels(count, outputs)), loss

    @staticmethod
    def labels(count: int, outputs: int) -> Tensor:
        """Placeholder labels for a batch of `count` images and a model with `outputs` outputs."""
        return torch.empty(count, dtype=torch.long)

    @staticmethod
    def predictions(outputs: Tensor, names: Sequence[str]) -> Iterator[Prediction]:
        """What the outputs (B, classes) say of every image, of a task whose kind `tells_classes`."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        with size_refused(self.built.base.image_size):
            return self.objective(self.model, self.recipe, self.to_device(batch))

    def batches_of(self, split: str) -> Iterator[Batch]:
        """This process's share of a whole split, in order, on the device, for the model in evaluation mode.

        Raises:
            UsageError: the split has no images.
        """
        images: Any = self.splits.named(split)
        if not len(images):
            raise empty(split, self.recipe)
        self.in_training = False
        self.model.eval()
        pin, size = self.processes.device.type == "cuda", self.recipe.eval.batch_size
        share = images if self.processes.count == 1 else Subset(images, self.processes.share(len(images)))
        batches: Iterator[Batch] = evaluation_batches(share, size, workers=self.recipe.data.workers, pin=pin)
        if self.shows_progress:
            batches = with_bar(batches, f"{split} images", total=len(share), size=self.amount)
        for batch in batches:
            yield self.to_device(batch)

    def to_device(self, batch: Batch) -> Batch:
        """Images, and labels as the model numbers its classes, on the model's device."""
        images, labels = (tensor.to(self.processes.device, non_blocking=True) for tensor in batch)
        return images, self._numbered(labels)

    def _numbered(self, labels: Tensor) -> Tensor:
        """Labels (B,), or shares of classes (B, C), of the data → those of the model."""
        if self._relabel is None:
            return labels
        relabel = self._relabel.to(labels.device)
        if labels.ndim == 1:
            return relabel[labels]
        made = labels.new_zeros(len(labels), self.outputs)
        made[:, relabel] = labels[:, : len(relabel)]  # mixed images have a share of every output
        return made
