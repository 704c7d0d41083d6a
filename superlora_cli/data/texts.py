"""Texts to train on, in one of four forms: which columns a row has decides which.

    messages                    a conversation; the answers are learned
    prompt, choices, answer     a question with several answers, one of them right (its number or its text)
    prompt, completion          the completion is learned
    text                        all of it is learned; with `label`, it belongs to a class

`data.columns` gives the columns other names, or makes a text of several: `{prompt: "Question: {question}"}`. Rows of
none of these forms are left out and reported.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any

from torch.utils.data import Dataset

from superlora_cli.data.folder import some
from superlora_cli.data.holding_out import three_parts_of
from superlora_cli.data.source import Splits, Unreadable
from superlora_cli.errors import UsageError

Row = Mapping[str, Any]
FORMS = (("messages",), ("prompt", "choices", "answer"), ("prompt", "completion"), ("text",))
LABEL = "label"
NUMBER = re.compile(r"((?<!\w)-?\d+|\d+)")
COLUMNS = tuple(dict.fromkeys([*(name for form in FORMS for name in form), LABEL]))


class Texts(Dataset[Any]):
    """Rows with the columns of a form."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    @cached_property
    def contents(self) -> list[str]:
        """A digest of every row."""
        lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) for row in self.rows)
        return [hashlib.sha256(line.encode(errors="surrogatepass")).hexdigest() for line in lines]

    @property
    def labels(self) -> list[str | None]:
        """The label of every row that has one."""
        return [row.get(LABEL) for row in self.rows]

    def part(self, indices: Sequence[int]) -> Texts:
        """Some of the rows."""
        return Texts([self.rows[index] for index in indices])


@dataclass(frozen=True)
class TextSource:
    """Texts as found; as `source.Source`."""

    train: Texts
    validation: Texts | None
    test: Texts | None
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()


def check_columns(columns: Mapping[str, str] | None) -> None:
    """Refuse `data.columns` for others than the columns of a form, or with something that is not a template.

    Raises:
        UsageError: names the column.
    """
    for name, template in (columns or {}).items():
        where = f"data.columns.{name}"
        if name not in COLUMNS:
            raise UsageError(f"there is no column '{name}'", where=where, hint="one of " + ", ".join(COLUMNS))
        hint = 'a column, or a text with columns: "Question: {question}"'
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise UsageError(f"not a template: {error}", where=where, hint=hint) from None
        for _, column, form, conversion in parts:
            if column is not None and (not column or form or conversion or set(column) & set(".[]")):
                raise UsageError(f"'{{{column}}}' is not the name of a column alone", where=where, hint=hint)


class UnfitError(Exception):
    """Why a row is left out."""


def shaped(row: Any, columns: Mapping[str, str] | None) -> Row:
    """A row with the columns of its form only.

    Raises:
        UnfitError: it is of no form.

    >>> shaped({"question": "1+1?", "completion": "2", "id": 7}, {"prompt": "Q: {question}"})
    {'prompt': 'Q: 1+1?', 'completion': '2'}
    """
    if not isinstance(row, Mapping):
        raise UnfitError("not an object with columns")
    own = {name: _value(row, name, (columns or {}).get(name, name)) for name in COLUMNS}
    form = next((form for form in FORMS if all(own[name] is not None for name in form)), None)
    if form is None:
        raise UnfitError("has no text, no prompt with a completion, and no messages")
    found = {name: own[name] for name in form}
    if "choices" in found:
        found["answer"] = _number(found["choices"], found["answer"])
    elif "messages" in found:
        _check_messages(found["messages"])
    learned = form[-1]
    for name in found.keys() & {"prompt", "completion", "text"}:
        if _is_number(found[name]):
            found[name] = str(found[name])
        if not isinstance(found[name], str):
            raise UnfitError(f"its {name} is not a text")
    if not _is_text(found):
        raise UnfitError("is not valid Unicode")
    if isinstance(found[learned], str) and not found[learned]:
        raise UnfitError(f"its {learned} is empty")
    if own[LABEL] is not None and learned == "text":
        found[LABEL] = str(own[LABEL])
    return found


def _is_number(value: Any) -> bool:
    """Whether a value is a number that is written as in a table of texts: 7 is, true and NaN are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(row: Row) -> bool:
    """Whether all of it can be encoded: escapes in JSON may be halves of characters."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _value(row: Mapping[str, Any], name: str, template: str) -> Any:
    if "{" not in template:
        return row.get(template)
    if any(row.get(column) is None for _, column, *_ in Formatter().parse(template) if column):
        return None
    try:
        return template.format_map(row)
    except (KeyError, IndexError, AttributeError, ValueError):
        return None


def _number(choices: Any, answer: Any) -> int:
    """The number of the right answer, which is given as that, as a letter, or as its text."""
    if not (isinstance(choices, list) and len(choices) > 1 and all(isinstance(each, str) and each for each in choices)):
        raise UnfitError("its choices are not a list of several texts")
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer.isascii() and answer.isalpha():
        answer = ord(answer.upper()) - ord("A")
    whole = isinstance(answer, int) and not isinstance(answer, bool)
    whole |= isinstance(answer, float) and answer.is_integer()
    number = int(answer) if whole or (isinstance(answer, str) and answer.isascii() and answer.isdecimal()) else -1
    if not 0 <= number < len(choices):
        raise UnfitError("its answer is none of its choices")
    return number


def _check_messages(messages: Any) -> None:
    def fits(message: Any) -> bool:
        return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))

    if not (isinstance(messages, list) and messages and all(map(fits, messages))):
        raise UnfitError("its messages are not a list of objects with role and content")
    if not any(message["role"] == "assistant" for message in messages):
        raise UnfitError("its messages have no answer of the assistant")


def read_rows(rows: Iterable[tuple[str, Any]], columns: Mapping[str, str] | None, bad: list[Unreadable]) -> Texts:
    """The rows that have a form, of (place, row or reason why it cannot be read); the others are added to `bad`."""
    kept: list[Row] = []
    for place, row in rows:
        try:
            if isinstance(row, UnfitError):
                raise row
            kept.append(shaped(row, columns))
        except UnfitError as cause:
            bad.append(Unreadable(place, str(cause)))
    return Texts(kept)


def told(bad: Sequence[Unreadable], total: int) -> tuple[str, ...]:
    """A note for every reason why rows are left out."""
    notes = []
    for cause in sorted({row.cause for row in bad}):
        places = [row.path for row in bad if row.cause == cause]
        notes.append(f"left out {len(places):,} of {total:,} texts ({cause}): {some(places)}")
    return tuple(notes)


def _in_order(label: str) -> tuple[list[str | int], str]:
    """Sorts labels by the numbers in them.

    >>> sorted(["10", "2", "-1", "level 10", "level 9"], key=_in_order)
    ['-1', '2', '10', 'level 9', 'level 10']
    """
    parts = NUMBER.split(label)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], label


def held_out(found: TextSource, share: float, rule: str | None, seed: int) -> Splits:
    """Three splits: parts that are missing are held out of the training texts, if the share is not 0.

    By the rule `content`, texts are not told apart by their labels.
    """
    digest = hashlib.sha256()
    labels = set()
    for texts in (found.train, found.validation, found.test):
        digest.update("".join(texts.contents).encode() if texts else b"")
        labels |= {label for label in texts.labels if label is not None} if texts else set()
    names = tuple(sorted(labels, key=_in_order))
    classes = dict(zip(names, names, strict=True)) if rule == "label" else {}
    parts, notes = three_parts_of(found, share, rule, seed, classes=classes, called="texts")
    return Splits(*parts, names, digest.hexdigest(), unreadable=found.unreadable, notes=(*found.notes, *notes))
