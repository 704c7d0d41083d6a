"""Language judged by generated answers: how many are exactly right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property

import torch

from superlora_cli.data.source import Unreadable
from superlora_cli.data.text_rows import UnfitError
from superlora_cli.data.texts import Texts, told
from superlora_cli.errors import UsageError
from superlora_cli.tasks.language.completing import How, complete, stopped
from superlora_cli.tasks.language.encoding import Encoded, Question, question
from superlora_cli.tasks.language.task import Language, base_of


def found_in(text: str, pattern: str | None) -> str | None:
    """The answer in a text: the last match of a pattern (of its first group), or all of the text, without spaces
    around it; None if nothing matches.

    >>> found_in("so 3 + 4 = 7. The answer is 7.", r"answer is (\\d+)"), found_in(" 7 ", None)
    ('7', '7')
    """
    if pattern is None:
        return text.strip()
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    return ((matches[-1][1] or "") if matches[-1].re.groups else matches[-1][0]).strip()


class Answering(Language):
    """The answer to every prompt is generated, always the likeliest token, and compared with the completion."""

    measure = "exact_match"

    @cached_property
    def how(self) -> How:
        """How answers are generated."""
        return How(self.settings.max_tokens, tuple(self.settings.stop))

    @cached_property
    def questions(self) -> dict[str, list[Question]]:
        """The questions of every split that has been encoded."""
        return {}

    def first_use(self, split: str) -> Encoded:
        """As of any language model; texts of held-out splits that cannot be asked are named, too."""
        found, texts = super().first_use(split), self.splits.named(split)
        assert isinstance(texts, Texts)
        asked, bad, positions = [], [], base_of(self.built).positions
        for row, place in zip(texts.rows, texts.places, strict=True):
            if split == "train" or "text" in row:
                continue
            with suppress(UnfitError):  # is named already
                own = question(row, self.tokenizer)
                if not own.prompt:
                    bad.append(Unreadable(place, "its prompt is empty"))
                elif positions is not None and len(own.prompt) >= positions:
                    bad.append(Unreadable(place, f"its prompt leaves no room in the model's {positions:,} positions"))
                else:
                    asked.append(own)
        self.questions[split] = asked
        self.tell(split, (*told(bad, len(texts)), *self._doubts(asked, len(texts))))
        return found

    def _doubts(self, asked: Sequence[Question], texts: int) -> Iterator[str]:
        """What to know of a score of these of so many texts."""
        if 0 < len(asked) < texts:
            yield f"{len(asked):,} of {texts:,} texts have a prompt, of which exact_match is"
        answers = [stopped(own.answer, self.how.stop) for own in asked]
        ids = self.tokenizer(answers, add_special_tokens=False)["input_ids"] if answers else []
        if longer := sum(len(one) > self.how.max_tokens for one in ids):
            longest = max(map(len, ids))
            yield (f"{longer:,} of {len(ids):,} completions have more tokens than language.max_tokens "
                   f"({self.how.max_tokens:,}), up to {longest:,}: their answers may be cut")  # fmt: skip

    def evaluate(self, split: str) -> dict[str, float]:
        """The share of answers that are exactly right, and what `Language.evaluate` gives."""
        return {"exact_match": self.exact_match(split), **super().evaluate(split)}

    @torch.no_grad()
    def exact_match(self, split: str) -> float:
        """The share of prompts whose generated answer is the completion.

        Raises:
            UsageError: no text has a prompt.
        """
        self.encoded[split]  # finds the questions
        asked = self.questions[split]
        if not asked:
            hint = "data with the columns prompt and completion"
            raise UsageError("no text has a prompt to answer", where="language.judge", hint=hint)
        self.in_training = False
        self.model.eval()
        own = [asked[index] for index in self.processes.share(len(asked))]
        ids, wanted = zip(*own, strict=True)
        right = torch.zeros(len(own), device=self.processes.device)
        made = complete(
            self.model, self.tokenizer, ids, self.how, batch_size=self.recipe.eval.batch_size,
            device=self.processes.device, positions=base_of(self.built).positions,
            together=bool(self.recipe.train.shard_base),
        )  # fmt: skip
        pattern = self.settings.answer
        answers = [found_in(stopped(completion, self.how.stop), pattern) for completion in wanted]
        if None in answers:
            message = f"does not match the completion {wanted[answers.index(None)][:80]!r}"
            raise UsageError(message, where="language.answer", hint="a pattern that every completion has")
        with self.built.kept(as_trained=True), self.processes.autocast():
            for index, completion in made:
                right[index] = found_in(completion.text, pattern) == answers[index]
        return self.processes.gather(right, len(asked)).double().mean().item()
