"""Texts with a class each: a new head on a language model, cross-entropy, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from superlora_cli.data.splits import SPLITS, Splits
from superlora_cli.data.stream import of_epochs
from superlora_cli.data.text_rows import LABEL
from superlora_cli.data.texts import Texts
from superlora_cli.errors import UsageError
from superlora_cli.opening.build import Built
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks.language.batches import epoch
from superlora_cli.tasks.language.encoding import Encoded, encode_whole
from superlora_cli.tasks.language.section import LanguageSection
from superlora_cli.tasks.language.task import Language, base_of, length_of, most_tokens
from superlora_cli.tasks.teaching import divergence


class Batch(NamedTuple):
    """Texts, filled up at their ends, with which tokens are theirs, and their classes."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


class Labelling(Language):
    """The class of every text, from what the model has read at its last token."""

    measure = "accuracy"

    def read(self, recipe: Recipe) -> Splits:
        found = super().read(recipe)
        for split in SPLITS:
            texts = found.named(split)
            assert isinstance(texts, Texts)
            if without := sum(LABEL not in row for row in texts.rows):
                hint = "data with the columns text and label; or name them in data.columns"
                raise UsageError(f"{without:,} texts of the {split} part have no label", where="model.head", hint=hint)
        return found

    def _encoded(self, texts: Any) -> Encoded:
        assert isinstance(texts, Texts)
        return encode_whole(texts.rows, self.tokenizer, self.length)

    @property
    def room(self) -> None:
        return None

    @property
    def pad(self) -> int:
        config: Any = self.model.config
        return int(config.pad_token_id)

    def known_classes(self) -> int:
        return int(self.model.num_labels)  # type: ignore[arg-type]

    def match_classes(self) -> None:
        self.numbers_of(self.splits.class_names)

    def check_classes(self) -> None:
        known = self.known_classes()
        if self.splits.classes > known:
            message = f"'{self.recipe.data.name}' has {self.splits.classes} classes, the model {known} outputs"
            raise UsageError(message, where="data.num_classes", hint="leave it out")

    def prepare(self) -> None:
        """Each text is alone in its sequence."""

    @classmethod
    def rehearsal(cls, built: Built) -> tuple[Callable[[], Any], Callable[[Any], Tensor]]:
        length = length_of(built.recipe.section(LanguageSection), base_of(built))
        return (
            lambda: _full(built.recipe.train.batch_size, length),
            lambda batch: functional.cross_entropy(_logits(built.model, batch), batch.labels),
        )

    @classmethod
    def rehearsed_evaluation(cls, built: Built) -> Callable[[], object]:
        length = length_of(built.recipe.section(LanguageSection), base_of(built))
        count = min(built.recipe.eval.batch_size, max(1, most_tokens(built.model) // length))

        def evaluates() -> None:
            with built.kept(as_trained=True):
                _logits(built.model, _full(count, length))

        return evaluates

    @property
    def guessing(self) -> float:
        """The loss if all classes are equally likely."""
        return math.log(self.splits.classes)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        numbers = partial(epoch, self.encoded["train"], self.recipe.train.batch_size, self.recipe.seed, room=None)
        for _, own in of_epochs(numbers, self.steps_of_epoch(), self.share, start, stop):
            for rows in own:
                yield self._batch("train", np.concatenate(rows))

    def _batch(self, split: str, numbers: Sequence[int] | np.ndarray) -> Batch:
        encoded, texts = self.encoded[split], self.splits.named(split)
        assert isinstance(texts, Texts)
        own = [encoded.tokens[encoded.starts[index] : encoded.starts[index + 1]].tolist() for index in numbers]
        longest = max(map(len, own))
        ids = torch.tensor([ids + [self.pad] * (longest - len(ids)) for ids in own])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in own])
        labels = torch.tensor([self.class_names.index(texts.rows[index][LABEL]) for index in numbers])
        return Batch(*(tensor.to(self.processes.device) for tensor in (ids, mask, labels)))

    def amount(self, batch: Batch) -> int:
        return int(batch.ids.numel())

    def loss(self, batch: Batch) -> Tensor:
        outputs, smoothing = _logits(self.model, batch), self.recipe.train.label_smoothing
        labelled = functional.cross_entropy(outputs, batch.labels, label_smoothing=smoothing)
        if self.teacher is None:
            return labelled
        told = self.teacher.answers(_logits, self.teacher.built.model, batch)
        return self.teacher.loss(labelled, outputs, told, divergence).mean()

    def unlike(self, other: Built) -> str | None:
        return super().unlike(other) or (None if other.class_names == tuple(self.class_names) else "classes")

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """Accuracy (a fraction) and mean cross-entropy on a whole split."""
        lengths = self.encoded[split].lengths
        count = len(lengths)
        own = self.processes.share(count)
        self.in_training = False
        self.model.eval()
        outputs, labels = [], []
        with self.built.kept(as_trained=True), self.processes.autocast():
            for part in self.parts(own, lengths):
                batch = self._batch(split, part)
                outputs.append(_logits(self.model, batch))
                labels.append(batch.labels)
        logits, wanted = (self.processes.gather(torch.cat(parts), count) for parts in (outputs, labels))
        self.check_outputs(logits)
        return {
            "accuracy": (logits.argmax(-1) == wanted).double().mean().item(),
            "loss": functional.cross_entropy(logits, wanted).item(),
        }


def _full(count: int, length: int) -> Batch:
    """A batch of texts that are as long as can be."""
    ids = torch.zeros(count, length, dtype=torch.long)
    return Batch(ids, torch.ones_like(ids), torch.zeros(count, dtype=torch.long))


def _logits(model: Any, batch: Batch) -> Tensor:
    """The outputs (B, classes) for the last token of every text."""
    found: Tensor = model(batch.ids, attention_mask=batch.mask, use_cache=False).logits.float()
    return found
