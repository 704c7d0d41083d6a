"""A causal language model learns texts: the next token of all that is to be learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.cache import once
from superlora_cli.data.known import kind_named
from superlora_cli.data.splits import DATA_SEED, SPLITS, Splits
from superlora_cli.data.texts import Texts, held_out
from superlora_cli.errors import UsageError
from superlora_cli.models.language import LanguageBase
from superlora_cli.opening.build import Built
from superlora_cli.progress import with_bar
from superlora_cli.recipe.schema import DataSection, Recipe
from superlora_cli.tasks.language.batches import Batch, collated, in_batches, packed, steps_of_texts, stream
from superlora_cli.tasks.language.encoding import Encoded, check_tokens, encode
from superlora_cli.tasks.language.logits import ROUNDING, Logits, known_arguments
from superlora_cli.tasks.language.section import LanguageSection
from superlora_cli.tasks.teaching import divergence
from superlora_cli.tasks.work import Work
from superlora_cli.training.processes import Processes

CACHED = 4  # data sets
NUMBERS = 1 << 28  # of logits that an evaluation has at a time: 1 GiB


def base_of(built: Built) -> LanguageBase:
    """The language model of a recipe."""
    assert isinstance(built.base, LanguageBase)
    return built.base


def length_of(settings: LanguageSection, base: LanguageBase) -> int:
    """Most tokens of a sequence.

    Raises:
        UsageError: the recipe asks for more than the model has positions.
    """
    found, known = settings.length or base.longest, base.positions
    if known is not None and found > known:
        raise UsageError(f"the model has {known:,} positions", where="language.length", hint=f"at most {known}")
    return found


def tokenizer_of(settings: LanguageSection, base: LanguageBase) -> Any:
    """The base's tokenizer, with the recipe's chat template if it has one."""
    if settings.chat_template is not None:
        base.tokenizer.chat_template = settings.chat_template
    return base.tokenizer


def read_texts(section: DataSection) -> Splits:
    """The texts that a recipe names.

    Raises:
        UsageError: the name is unknown, or the data are missing or cannot be read.
    """

    def read() -> Splits:
        kind = kind_named(section.name)
        found = held_out(kind.texts(section, seed=DATA_SEED), section.validation, section.split, DATA_SEED)
        if kind.embedded:
            return found  # made in these numbers
        most = {"train": section.train_texts}
        return replace(
            found, **{split: _some(found.named(split), most.get(split, section.eval_texts)) for split in SPLITS}
        )

    return once("texts", section, read, most=CACHED)


def _some(texts: Any, most: int | None) -> Any:
    """At most so many texts, drawn at random and in their order."""
    assert isinstance(texts, Texts)
    if most is None or most >= len(texts):
        return texts
    return texts.part(sorted(np.random.RandomState(DATA_SEED).permutation(len(texts))[:most].tolist()))


class FirstUse(dict[str, Encoded]):
    """Values by keys, each made when it is first asked for."""

    def __init__(self, make: Callable[[str], Encoded]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, key: str) -> Encoded:
        self[key] = found = self.make(key)
        return found


class Language(Work):
    """The task as the training loop sees it, and its evaluation.

    Attributes:
        length: most tokens of a sequence.
        encoded: the texts of every split as tokens, made when they are first asked for.
    """

    measure = "loss"
    unit = "tokens"

    def __init__(self, built: Built, processes: Processes) -> None:
        self.settings = built.recipe.section(LanguageSection)
        self.tokenizer = tokenizer_of(self.settings, base_of(built))
        self.length = length_of(self.settings, base_of(built))
        super().__init__(built, processes)

    def read(self, recipe: Recipe) -> Splits:
        return read_texts(recipe.data)

    def _encoded(self, texts: Any) -> Encoded:
        assert isinstance(texts, Texts)
        return encode(texts.rows, self.tokenizer, self.length, places=texts.places)

    def first_use(self, split: str) -> Encoded:
        """A split as tokens, with its notes among those on the data.

        Raises:
            UsageError: nothing of it can be used, or the model has no embedding for a token.
        """
        found = self._encoded(self.splits.named(split))
        check_tokens(found.tokens, self.tokenizer, self.model)
        self.tell(split, found.notes)
        return found

    def tell(self, split: str, notes: Sequence[str]) -> None:
        """Add notes on a split to those on the data."""
        told = (f"{split}: {note}" for note in notes)
        self.splits = replace(self.splits, notes=(*self.splits.notes, *told))

    @property
    def room(self) -> int | None:
        """Tokens of a sequence that texts are packed into; None if each is alone."""
        return self.length if self.settings.pack else None

    @property
    def pad(self) -> int:
        """The token that fills sequences, which is never learned."""
        return int(self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)

    def arrange(self) -> None:
        """Texts become tokens: for training those of all splits, so that it begins with all notes on them."""
        self.encoded = FirstUse(self.first_use)
        if not self.built.stored:
            for split in SPLITS:
                self.encoded[split]

    def steps_of_epoch(self) -> int:
        return steps_of_texts(self.encoded["train"], self.recipe.train.batch_size, self.share, self.room)

    def prepare(self) -> None:
        self.logits = Logits(self.model)
        self.logits.try_out()
        if self.teacher:
            self.teacher_logits = Logits(self.teacher.built.model)
            self.teacher_logits.try_out()
        if self.settings.pack and not keeps_apart(self.model):
            message = "the model does not keep the texts of a sequence apart"
            raise UsageError(message, where="language.pack", hint="language.pack=false")

    @classmethod
    def rehearsal(cls, built: Built) -> tuple[Callable[[], Any], Callable[[Any], Tensor]]:
        logits, length = Logits(built.model), length_of(built.recipe.section(LanguageSection), base_of(built))
        return (
            lambda: _full(built.recipe.train.batch_size, length),
            lambda batch: losses(logits, batch, built.recipe.train.label_smoothing).sum(),
        )

    @classmethod
    def rehearsed_evaluation(cls, built: Built) -> Callable[[], object]:
        logits, length = Logits(built.model), length_of(built.recipe.section(LanguageSection), base_of(built))
        count = min(built.recipe.eval.batch_size, max(1, most_tokens(built.model) // length))

        def evaluates() -> None:
            with built.kept(as_trained=True):
                losses(logits, _full(count, length))

        return evaluates

    @property
    def guessing(self) -> float:
        """The loss if all tokens are equally likely."""
        return math.log(len(self.tokenizer))

    def batches(self, start: int, stop: int) -> Generator[Any, None, None]:
        yield from stream(
            self.encoded["train"], self.recipe.train.batch_size, seed=self.recipe.seed, start=start, stop=stop,
            share=self.share, room=self.room, pad=self.pad,
        )  # fmt: skip

    def amount(self, batch: Any) -> int:
        return batch.tokens

    def loss(self, batch: Any) -> Tensor:
        batch = batch.to(self.processes.device)
        outputs = outputs_of(self.logits, batch)
        found = cross_entropies(outputs, batch, self.recipe.train.label_smoothing)
        if self.teacher:
            told = self.teacher.answers(outputs_of, self.teacher_logits, batch)
            found = self.teacher.loss(found, outputs, told, divergence)
        return found.sum() * batch.weight

    def unlike(self, other: Built) -> str | None:
        if other.recipe.model.head != self.recipe.model.head:
            return "outputs (model.head)"
        same = base_of(other).tokenizer.get_vocab() == self.tokenizer.get_vocab()
        return None if same and vocabulary(self.model) == vocabulary(other.model) else "tokens"

    def parts(self, own: Sequence[int], lengths: np.ndarray) -> list[Sequence[int]]:
        """Numbers of sequences in batches of an evaluation, given the lengths of all sequences.

        Where processes hold parts of the base, all of them have as many batches.
        """
        sizes = np.full(len(own), lengths.max()) if self.recipe.train.shard_base else lengths[np.asarray(own)]
        batches = in_batches(sizes, self.recipe.eval.batch_size, most_tokens(self.model))
        return [own[batch.start : batch.stop] for batch in batches]

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """The mean loss of all learned tokens of a split, and their bits per byte of text."""
        encoded = self.encoded[split]
        order = np.argsort(-encoded.lengths, kind="stable") if self.room is None else np.arange(len(encoded))
        rows = packed(encoded.lengths, order, self.room) if self.room else list(order[:, None])
        own = self.processes.share(len(rows))
        self.in_training = False
        self.model.eval()
        parts = self.parts(own, np.array([encoded.lengths[row].sum() for row in rows]))
        bar = with_bar(parts, f"{split} texts", total=len(own), size=len) if self.shows_progress else parts
        sums = []
        with self.built.kept(as_trained=True), self.processes.autocast():
            for part in bar:
                batch = collated(encoded, [rows[index] for index in part], pad=self.pad).to(self.processes.device)
                sums.append(batch.per_sequence(losses(self.logits, batch)))
        found = self.processes.gather(torch.cat(sums), len(rows))
        self.check_outputs(found[:, None])
        total = found.cpu().double().sum().item()
        bits = total / math.log(2)
        return {"loss": total / int(encoded.learned.sum()), "bits_per_byte": bits / max(1, encoded.bytes)}


def outputs_of(logits: Logits, batch: Batch) -> Tensor:
    """The logits for every learned token: (n, V) float32."""
    return logits.at(batch.ids, batch.positions, batch.at).float()


def cross_entropies(outputs: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of every learned token: (n,) float32."""
    return functional.cross_entropy(outputs, batch.wanted, reduction="none", label_smoothing=smoothing)


def losses(logits: Logits, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """The same, from the model."""
    return cross_entropies(outputs_of(logits, batch), batch, smoothing)


def most_tokens(model: Any) -> int:
    """How many tokens a batch of an evaluation has at most."""
    return max(1, NUMBERS // vocabulary(model))


def vocabulary(model: Any) -> int:
    """How many logits a model has for a token."""
    return int(model.config.get_text_config().vocab_size)


def _full(count: int, length: int) -> Batch:
    """A batch of sequences, all of which is learned."""
    ids, positions = torch.zeros(count, length, dtype=torch.long), torch.arange(length).expand(count, length)
    at = torch.arange(count * length)
    return Batch(ids, positions, at, torch.zeros_like(at), 1.0, count * length)


def takes_positions(model: nn.Module) -> bool:
    """Whether a model can be told that positions start anew, without which texts cannot be packed."""
    return "position_ids" in known_arguments(model)


@torch.no_grad()
def keeps_apart(model: nn.Module) -> bool:
    """Whether a text is not affected by another one before it in the same sequence, if positions start anew."""
    if not takes_positions(model):
        return False
    model.eval()
    ids = torch.tensor([[1, 2, 3, 4, 5], [3, 1, 2, 4, 5]])
    positions = torch.tensor([[0, 1, 2, 0, 1]] * 2)
    found = model(ids, position_ids=positions, use_cache=False).logits[:, 3:].float()
    return bool((found[0] - found[1]).abs().max() <= ROUNDING * found.abs().max())
