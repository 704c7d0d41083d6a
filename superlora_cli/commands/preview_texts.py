"""Training texts as the model sees them: their tokens, which of them are learned, and what is cut."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from superlora_cli.data.text_rows import LABEL
from superlora_cli.data.texts import Texts
from superlora_cli.errors import UsageError
from superlora_cli.models.language import LanguageBase
from superlora_cli.opening.base import open_base
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks.language.batches import epoch
from superlora_cli.tasks.language.encoding import check_tokens, encode, encode_whole
from superlora_cli.tasks.language.section import LanguageSection
from superlora_cli.tasks.language.task import length_of, read_texts, tokenizer_of
from superlora_cli.tasks.reading import settled


def preview_texts(recipe: Recipe, *, count: int) -> dict[str, Any]:
    """The first `count` texts of training, as one process sees them; of the model, only its tokenizer is read.

    Returns:
        num, length (most tokens of a text), texts (`tokens`, `learned`, the numbers of both, and `parts`, each with its
        `text` and whether it is `learned`; the `label`, if there are labels) and notes on what is cut or left out.

    Raises:
        UsageError: something is wrong with the model or the data.
    """
    recipe = settled(recipe)
    base, labelled = open_base(recipe, weights=False), recipe.model.head == "new"
    settings = recipe.section(LanguageSection)
    assert isinstance(base, LanguageBase)
    length, splits = length_of(settings, base), read_texts(recipe.data)
    texts = splits.train
    assert isinstance(texts, Texts)
    if not len(texts):
        raise UsageError("no texts to train on", where=recipe.data.name, hint="add train")
    tokenizer = tokenizer_of(settings, base)
    if labelled:
        encoded = encode_whole(texts.rows, tokenizer, length)
    else:
        encoded = encode(texts.rows, tokenizer, length, places=texts.places)
    check_tokens(encoded.tokens, tokenizer, base.model)
    room = length if settings.pack and not labelled else None
    batches = epoch(encoded, recipe.train.batch_size, recipe.seed, 0, room)
    order = np.concatenate([numbers for batch in batches for numbers in batch])
    shown = []
    for number in order[:count].tolist():
        span = slice(encoded.starts[number], encoded.starts[number + 1])
        tokens, learned = encoded.tokens[span], encoded.learned[span]
        parts = [
            {"text": tokenizer.decode([token for token, _ in own]), "learned": bool(mark)}
            for mark, own in groupby(zip(tokens.tolist(), learned.tolist(), strict=True), key=lambda pair: pair[1])
        ]
        label = {LABEL: texts.rows[number][LABEL]} if labelled else {}
        shown.append({"tokens": len(tokens), "learned": int(learned.sum()), "parts": parts, **label})
    return {"num": len(shown), "length": length, "texts": shown, "notes": [*splits.notes, *encoded.notes]}
