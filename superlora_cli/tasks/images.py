"""What tasks on images have in common: device, batches, predictions, result files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from superlora_cli.adapter import store
from superlora_cli.data.batches import Batch, evaluation_batches
from superlora_cli.data.splits import Look, Splits, load_splits
from superlora_cli.errors import RunError, UsageError, did_you_mean
from superlora_cli.models.recomputing import recompute
from superlora_cli.opening.build import Built
from superlora_cli.opening.model_file import model_bytes
from superlora_cli.opening.results import ADAPTER_FILE, MODEL_FILE
from superlora_cli.progress import with_bar
from superlora_cli.recipe.schema import DataSection, Recipe
from superlora_cli.tasks.reading import DATA_SEED, in_steps, read_training
from superlora_cli.training.processes import Processes

if TYPE_CHECKING:
    from superlora_cli.tasks.classification.confusion_table import ConfusionTable


@dataclass(frozen=True)
class Judgement:
    """The evaluation of a model on a whole split.

    Attributes:
        per_class: a row for every class that has images, with its name and number of images `n`; None without classes.
        confusion: None if an image does not have exactly one class.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]] | None = None
    confusion: ConfusionTable | None = None


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


class ImageTask:
    """A task as the training loop sees it, except for its loss and its score.

    Attributes:
        recipe: with the length of training in steps.
        measure: the metric that is reported first and selects the best step.
        confuses: whether an image has exactly one class, so that there is a confusion matrix.
        predicted: columns of a table of predictions, after `file`.
        look, splits: the image format that the model expects, and the data.
        class_names: of the model's outputs, or of the labels it is conditioned on.
        shows_progress: whether every evaluation shows a progress bar.
    """

    measure: ClassVar[str]
    confuses: ClassVar[bool] = False
    predicted: ClassVar[tuple[str, ...]] = ()
    shows_progress = False

    def __init__(self, built: Built, processes: Processes) -> None:
        self.built, self.processes = built, processes
        self.recipe = built.recipe
        self.model, base = built.model, built.base
        self.look = Look(base.image_size, base.mean, base.std)
        self.splits = self.read(built.recipe)
        self.recipe = self.in_steps(built.recipe)
        self.check_classes()
        self.class_names = built.class_names or self.splits.class_names
        self._relabel = self._numbers_of(self.splits.class_names)
        self.in_training = False
        self.prepare()
        self._place()

    def prepare(self) -> None:
        """Work that is done once, before the model is on its device."""

    def read(self, recipe: Recipe) -> Splits:
        """The data of a recipe."""
        return load_splits(self.data(recipe), self.look, seed=DATA_SEED)

    def in_steps(self, recipe: Recipe) -> Recipe:
        """The recipe with `train.epochs`, if set, converted to steps for these images."""
        return in_steps(recipe, self.splits, self.processes.count)

    @staticmethod
    def data(recipe: Recipe) -> DataSection:
        """The recipe's data section, with the defaults of this task."""
        return recipe.data

    def check_classes(self) -> None:
        """Refuse data with more classes than the model has.

        Raises:
            UsageError: there are more classes.
        """
        raise NotImplementedError

    def _numbers_of(self, names: Sequence[str]) -> Tensor | None:
        """The model's number for every class of the data; None if both have the same order.

        Raises:
            UsageError: the data have a class that the model does not have.
        """
        if tuple(names) == self.class_names:
            return None
        for name in names:
            if name not in self.class_names:
                hint = did_you_mean(name, self.class_names) or f"it has {', '.join(self.class_names[:8])}, …"
                raise UsageError(f"the model has no class '{name}'", where=self.recipe.data.name, hint=hint)
        return torch.tensor([self.class_names.index(name) for name in names])

    def _place(self) -> None:
        """Move the model to the device and set it up as the recipe's `train` section says."""
        train = self.recipe.train
        if train.gradient_checkpointing:
            recompute(self.model)
        if train.shard_base:
            if self.built.adapter is None:
                raise UsageError("needs an adapter: without one there is no frozen base", where="train.shard_base")
            self.processes.shard(self.model, {*self.trained().values(), *self.head().values()})
        else:
            self.model.to(self.processes.device)
        if train.compile:
            keywords = train.compile if isinstance(train.compile, dict) else {}
            known = torch._dynamo.list_backends(exclude_tags=None)
            if keywords.get("backend", "inductor") not in known:
                hint = did_you_mean(str(keywords["backend"]), known) or f"one of {', '.join(known)}"
                raise UsageError(f"unknown backend '{keywords['backend']}'", where="train.compile", hint=hint)
            self.model.compile(**keywords)

    @property
    def outputs(self) -> int:
        """Number of outputs of a classifier, else 0."""
        return outputs_of(self.model)

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Training mode; ΔW is built once per optimizer step."""
        if not self.in_training:
            self.in_training = True
            self.model.train()
        if self.built.adapter is None:
            yield
            return
        with self.built.adapter.one_step():
            yield

    @property
    def guessing(self) -> float:
        """The loss of a model that guesses at random."""
        raise NotImplementedError

    def trained(self) -> dict[str, nn.Parameter]:
        """The factors and the base's own tensors that are trained with them; without an adapter, the whole base."""
        if self.built.adapter is None:
            return dict(self.model.named_parameters())
        return {**dict(self.built.adapter.factors.items()), **self.built.also}

    def head(self) -> dict[str, nn.Parameter]:
        """The new head that is trained with an adapter."""
        return self.built.head

    def buffers(self) -> dict[str, Tensor]:
        """Running statistics of a base that is trained itself."""
        if self.built.adapter:
            return {}
        stored = self.model.state_dict()
        return {name: buffer for name, buffer in self.model.named_buffers() if name in stored}

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """This process's batches of steps `start` ... `stop` − 1 of the shuffled training split."""
        processes = self.processes
        pin, own = processes.device.type == "cuda", (processes.index, processes.count)
        return read_training(self.recipe, self.splits, start, stop, outputs=self.outputs, process=own, pin=pin)

    def images_in(self, batch: Batch) -> int:
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

    def score(self) -> dict[str, float]:
        """Metrics on the split that selects the best step."""
        return self.evaluate(self.recipe.eval.select)

    def picture(self) -> bytes | None:
        """A PNG to look at beside the metrics of `score`; None for most tasks."""
        return None

    def judged_by(self) -> str:
        """`validation, 200 images`."""
        split = self.recipe.eval.select
        return f"{split}, {len(self.splits.named(split)):,} images"  # type: ignore[arg-type]

    def evaluate(self, split: str) -> dict[str, float]:
        """Metrics on a whole split."""
        raise NotImplementedError

    def judged(self, split: str) -> tuple[dict[str, float], dict[str, str]]:
        """The metrics of `evaluate`, and further files for the run folder: file name → text."""
        return self.evaluate(split), {}

    def judge(self, split: str) -> Judgement:
        """The metrics of `evaluate`, and everything else that an evaluation reports."""
        return Judgement(self.evaluate(split))

    def better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        """Whether the metrics `new` are better than `old`."""
        raise NotImplementedError

    def batches_of(self, split: str) -> Iterator[Batch]:
        """This process's share of a whole split, in order, on the device, for the model in evaluation mode.

        Raises:
            UsageError: the split has no images.
        """
        images: Any = self.splits.named(split)
        if not len(images):
            raise UsageError(f"the {split} split is empty", where="data.validation", hint="hold out some images")
        self.in_training = False
        self.model.eval()
        pin, size = self.processes.device.type == "cuda", self.recipe.eval.batch_size
        share = images if self.processes.count == 1 else Subset(images, self.processes.share(len(images)))
        batches: Iterator[Batch] = evaluation_batches(share, size, workers=self.recipe.data.workers, pin=pin)
        if self.shows_progress:
            batches = with_bar(batches, f"{split} images", total=len(share), size=self.images_in)
        for batch in batches:
            yield self.to_device(batch)

    def numbers(self, labels: Tensor) -> Tensor:
        """Class numbers of the data → those of the model."""
        return labels if self._relabel is None else self._relabel.to(labels.device)[labels]

    def not_finite(self) -> str | None:
        """The name of a target whose ΔW has NaN or Inf, if any."""
        if self.built.adapter is None or not self.built.adapter.targets:
            return None
        with torch.no_grad():
            made = self.built.adapter.compute()
        bad = torch.stack([~torch.isfinite(delta).all() for delta in made]).tolist()
        names = (f"ΔW of {target.name}" for target in self.built.adapter.targets)
        return next((name for name, is_bad in zip(names, bad, strict=True) if is_bad), None)

    def check_outputs(self, outputs: Tensor) -> None:
        """Refuse outputs (n, ...) that are not finite, one row per image.

        Raises:
            RunError: some are NaN or Inf.
        """
        bad = int((~torch.isfinite(outputs)).flatten(1).any(1).sum())
        if bad:
            message = f"the model gives NaN or Inf for {bad} of {len(outputs)} images"
            hint = "train.precision=fp32, or a base and an adapter with smaller weights"
            raise RunError(message, where=self.recipe.model.name, hint=hint)

    def exported(self, metrics: Mapping[str, Any]) -> dict[str, bytes]:
        """The result: adapter.safetensors, or model.safetensors if the base itself was trained."""
        recipe, adapter = self.recipe, self.built.adapter
        if adapter is None:
            state = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
            return {MODEL_FILE: model_bytes(state, recipe, metrics, tuple(self.class_names))}
        assert recipe.adapter is not None
        sha256, dtype = self.built.base_digest
        stored = store.StoredAdapter.of(
            adapter.config,
            adapter.targets,
            dict(adapter.factors.items()),
            patterns=recipe.adapter.patterns,
            base=(recipe.model.name, sha256, dtype),
            recipe=recipe.to_dict(),
            metrics=metrics,
            head=self.head(),
            also=self.built.also,
            classes=self.class_names,
        )
        return {ADAPTER_FILE: stored.to_bytes()}

    def to_device(self, batch: Batch) -> Batch:
        """Images and labels on the model's device."""
        device = self.processes.device
        return batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)
