"""Language judged by multiple choice: the answer that the model finds likeliest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from superlora_cli.data.text_rows import Row
from superlora_cli.data.texts import Texts
from superlora_cli.errors import UsageError
from superlora_cli.tasks.language.batches import collated
from superlora_cli.tasks.language.encoding import encode
from superlora_cli.tasks.language.task import Language, losses


class Choosing(Language):
    """Every choice of a question is rated by its likelihood after the prompt."""

    measure = "accuracy"

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """The share of questions whose right answer is the likeliest one, also per byte, and the loss.

        Raises:
            UsageError: no text has choices.
        """
        texts = self.splits.named(split)
        assert isinstance(texts, Texts)
        asked = [row for row in texts.rows if "choices" in row]
        if not asked:
            hint = "data with the columns prompt, choices and answer"
            raise UsageError("no text has choices", where="language.judge", hint=hint)
        self.in_training = False
        self.model.eval()
        own = [asked[index] for index in self.processes.share(len(asked))]
        size = max(1, self.recipe.eval.batch_size // max(len(row["choices"]) for row in own))
        right = []
        with self.built.kept(as_trained=True), self.processes.autocast():
            for start in range(0, len(own), size):
                right.append(self._judged(own[start : start + size]))
        shares = self.processes.gather(torch.cat(right).to(self.processes.device), len(asked)).double().mean(0)
        found = dict(zip(("accuracy", "accuracy_per_byte"), shares.tolist(), strict=True))
        return {**found, **super().evaluate(split)}

    def _judged(self, rows: Sequence[Row]) -> Tensor:
        """Whether the right answer is the likeliest, and the likeliest per byte: (n, 2)."""
        options = [{"prompt": row["prompt"], "completion": choice} for row in rows for choice in row["choices"]]
        encoded = encode(options, self.tokenizer, self.length, ended=False)
        if encoded.notes:  # some are cut, or left out
            message = f"a question has no room for its choices in {self.length:,} tokens"
            raise UsageError(message, where="language.length", hint="a greater length")
        batch = collated(encoded, list(np.arange(len(encoded))[:, None]), pad=self.pad).to(self.processes.device)
        likelihoods = -batch.per_sequence(losses(self.logits, batch)).cpu()
        per_byte = likelihoods / torch.tensor([len(option["completion"].encode()) for option in options])
        found, start = [], 0
        for row in rows:
            stop = start + len(row["choices"])
            found.append([float(by[start:stop].argmax()) == row["answer"] for by in (likelihoods, per_byte)])
            start = stop
        return torch.tensor(found, dtype=torch.float32)
