"""The embedded sets of texts: made problems, and docstrings; several together by `+`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from superlora_cli.data import docstrings
from superlora_cli.data.holding_out import by_content
from superlora_cli.data.sums import NOTATIONS, problems
from superlora_cli.data.texts import Texts, TextSource

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import DataSection

TEXTS = (20_000, 1_000)  # training texts, and texts for validation and for test: the defaults
HELD_OUT = 0.02  # share of the docstrings, for each


def read_made(section: DataSection, *, seed: int) -> TextSource:
    """The sets that `data.name` names, one after another.

    Raises:
        UsageError: the docstrings are not available.
    """
    sets = [_docstrings(section) if name == docstrings.NAME else _sums(name, section, seed)
            for name in section.name.split("+")]  # fmt: skip
    train, validation, test = (
        Texts([row for texts in parts for row in texts.rows]) for parts in zip(*sets, strict=True)
    )
    return TextSource(train, validation, test)


def _sums(name: str, section: DataSection, seed: int) -> list[Texts]:
    notation = NOTATIONS[name]
    counts = section.train_texts or TEXTS[0], *[section.eval_texts or TEXTS[1]] * 2
    found = []
    for split, count in zip(("train", "validation", "test"), counts, strict=True):
        made = problems(split, count, notation.digits, seed)
        found.append(Texts([{"prompt": notation.prompt(own), "completion": notation.completion(own)} for own in made]))
    return found


def _docstrings(section: DataSection) -> list[Texts]:
    texts = Texts([{"text": text} for text in docstrings.read_docstrings(section.root)])
    test, validation, train = by_content([0] * len(texts), texts.contents, HELD_OUT, 2)
    return [texts.part(train), texts.part(validation), texts.part(test)]
