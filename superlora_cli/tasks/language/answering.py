"""Language judged by generated answers: how many are exactly right."""

from __future__ import annotations

import re
from functools import cached_property

import torch

from superlora_cli.data.texts import Row, Texts
from superlora_cli.errors import UsageError
from superlora_cli.tasks.language.completing import How, complete, prompt_ids
from superlora_cli.tasks.language.encoding import pieces
from superlora_cli.tasks.language.task import Language


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

    def evaluate(self, split: str) -> dict[str, float]:
        """The share of answers that are exactly right, and what `Language.evaluate` gives."""
        return {"exact_match": self.exact_match(split), **super().evaluate(split)}

    @torch.no_grad()
    def exact_match(self, split: str) -> float:
        """The share of prompts whose generated answer is the completion.

        Raises:
            UsageError: no text has a prompt.
        """
        texts = self.splits.named(split)
        assert isinstance(texts, Texts)
        asked = [row for row in texts.rows if "text" not in row]
        if not asked:
            hint = "data with the columns prompt and completion"
            raise UsageError("no text has a prompt to answer", where="language.judge", hint=hint)
        self.in_training = False
        self.model.eval()
        own = [asked[index] for index in self.processes.share(len(asked))]
        prompts, wanted = zip(*(self._asked(row) for row in own), strict=True)
        talks = ["messages" in row for row in own]
        ids = [prompt_ids([prompt], self.tokenizer, special=not talk)[0]
               for prompt, talk in zip(prompts, talks, strict=True)]  # fmt: skip
        right = torch.zeros(len(own), device=self.processes.device)
        made = complete(
            self.model, self.tokenizer, ids, self.how, batch_size=self.recipe.eval.batch_size,
            device=self.processes.device, together=bool(self.recipe.train.shard_base),
        )  # fmt: skip
        pattern = self.settings.answer
        answers = [found_in(completion, pattern) for completion in wanted]
        if None in answers:
            message = f"does not match the completion {wanted[answers.index(None)][:80]!r}"
            raise UsageError(message, where="language.answer", hint="a pattern that every completion has")
        with self.built.kept(), self.processes.autocast():
            for index, completion in made:
                right[index] = found_in(completion.text, pattern) == answers[index]
        return self.processes.gather(right, len(asked)).double().mean().item()

    def _asked(self, row: Row) -> tuple[str, str]:
        """The prompt of a row, and the completion that is right."""
        *before, last = pieces(row, self.tokenizer)
        spoken = [each["content"] for each in row.get("messages", ()) if each["role"] == "assistant"]
        answer = spoken[-1] if spoken else last.text
        return "".join(piece.text for piece in before), answer
