"""Texts to train on, in one of four forms: which columns a row has decides which.

    messages                    a conversation; the answers are learned; `tools` may describe functions to call
    prompt, choices, answer     a question with several answers, one of them right (its number, letter or text)
    prompt, completion          the completion is learned; both may be lists of messages
    text                        all of it is learned; with `label`, it belongs to a class

`data.columns` gives the columns other names, or makes a text of several: `{prompt: "Question: {question}"}`; for usual
data sets, `SHAPES` does. Rows of none of these forms are left out and reported.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
LABEL, TOOLS = "label", "tools"
NUMBER = re.compile(r"((?<!\w)-?\d+|\d+)")
COLUMNS = tuple(dict.fromkeys([*(name for form in FORMS for name in form), LABEL, TOOLS]))
TASK = "### Instruction:\n{instruction}\n\n"
SHAPES: tuple[Mapping[str, str], ...] = (  # `data.columns` of usual data sets; a row is of the first that it fits
    {},
    {"messages": "conversations"},  # ShareGPT
    {"prompt": TASK + "### Input:\n{input}\n\n### Response:\n", "completion": "output"},  # Alpaca
    {"prompt": TASK + "### Response:\n", "completion": "output"},
    {"prompt": "{question}\n", "answer": "answer"},  # MMLU
    {"prompt": "{question}\n", "answer": "answerKey"},  # ARC
)
SPEAKERS = {"human": "user", "gpt": "assistant", "observation": "tool"}  # in ShareGPT's messages


class Texts(Dataset[Any]):
    """Rows with the columns of a form.

    Attributes:
        places: where each row is from, such as a file and its line.
    """

    def __init__(self, rows: Sequence[Row], places: Sequence[str] | None = None) -> None:
        self.rows = rows
        self.places = [f"text {number}" for number in range(1, len(rows) + 1)] if places is None else places

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
        return Texts([self.rows[index] for index in indices], [self.places[index] for index in indices])


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
    form, own = _form(row, columns or {})
    found = {name: own[name] for name in form}
    learned = form[-1]
    if "choices" in found:
        found["choices"], found["answer"] = _choices(found["choices"], found["answer"])
    if learned == "messages" or any(isinstance(found[name], list) for name in found.keys() - {"choices"}):
        found = {name: _messages(value, name) for name, value in found.items()}
        if not any(message["role"] == "assistant" for message in found[learned]):
            raise UnfitError(f"its {learned} {'have' if learned == 'messages' else 'has'} no answer of the assistant")
        if own[TOOLS]:
            found[TOOLS] = _tools(own[TOOLS])
    else:
        for name in found.keys() & {"prompt", "completion", "text"}:
            if _is_number(found[name]):
                found[name] = str(found[name])
            if not isinstance(found[name], str):
                raise UnfitError(f"its {name} is not a text")
    _check_text(found)
    if isinstance(found[learned], str) and not found[learned]:
        raise UnfitError(f"its {learned} is empty")
    if own[LABEL] is not None and learned == "text":
        found[LABEL] = str(own[LABEL])
    return found


def _form(row: Any, columns: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The form of a row in the first shape that gives it one, and its columns in that shape."""
    if not isinstance(row, Mapping):
        raise UnfitError("not an object with columns")
    for shape in SHAPES:
        if _has(row, [shape[name] for name in shape.keys() - columns.keys()]):
            own = {name: _value(row, name, {**shape, **columns}.get(name, name)) for name in COLUMNS}
            for form in FORMS:
                if all(own[name] is not None for name in form):
                    return form, own
    known = f"only the columns {', '.join(map(str, row))}" if row else "no columns"
    raise UnfitError(f"has no text, no prompt with a completion, and no messages, but {known}")


def conversation(row: Row) -> list[dict[str, Any]]:
    """All messages of a row that is a conversation; none of others.

    >>> conversation({"prompt": [{"role": "user", "content": "1+1?"}], "completion": []})
    [{'role': 'user', 'content': '1+1?'}]
    """
    parts = [row.get(name) for name in ("messages", "prompt", "completion")]
    return [message for part in parts if isinstance(part, list) for message in part]


def _has(row: Mapping[str, Any], templates: Iterable[str]) -> bool:
    """Whether a row has something in all columns of templates."""
    return all(
        row.get(name) not in (None, "")
        for template in templates
        for name in ([column for _, column, *_ in Formatter().parse(template) if column] or [template])
    )


def _is_number(value: Any) -> bool:
    """Whether a value is a number that is written as in a table of texts: 7 is, true and NaN are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_text(row: Row) -> None:
    """Refuse what cannot be encoded: escapes in JSON may be halves of characters, and tables hold dates."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UnfitError("is not valid Unicode") from None
    except TypeError:
        raise UnfitError("has values that are neither texts nor numbers") from None


def _value(row: Mapping[str, Any], name: str, template: str) -> Any:
    if "{" not in template:
        return row.get(template)
    if any(row.get(column) is None for _, column, *_ in Formatter().parse(template) if column):
        return None
    try:
        return template.format_map(row)
    except (KeyError, IndexError, AttributeError, ValueError):
        return None


def _choices(choices: Any, answer: Any) -> tuple[list[str], int]:
    """Answers, and the number of the right one, which is given as that, as a letter, as its text, or as its label."""
    if isinstance(choices, Mapping):
        labels, choices = choices.get("label"), choices.get("text")
        answer = labels.index(answer) if isinstance(labels, list) and answer in labels else answer
    if not (isinstance(choices, list) and len(choices) > 1 and all(isinstance(each, str) and each for each in choices)):
        raise UnfitError("its choices are not a list of several texts")
    if isinstance(answer, str) and answer in choices:
        return choices, choices.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer.isascii() and answer.isalpha():
        answer = ord(answer.upper()) - ord("A")
    whole = isinstance(answer, int) and not isinstance(answer, bool)
    whole |= isinstance(answer, float) and answer.is_integer()
    number = int(answer) if whole or (isinstance(answer, str) and answer.isascii() and answer.isdecimal()) else -1
    if not 0 <= number < len(choices):
        raise UnfitError("its answer is none of its choices")
    return choices, number


def _messages(given: Any, name: str) -> list[dict[str, Any]]:
    """Messages with role and content each; content that is a list of texts is joined, and of tool calls there may be
    none."""
    found = [_message(each) for each in given] if isinstance(given, list) else []
    if not found or None in found:
        what = "its messages are" if name == "messages" else f"its {name} is"
        raise UnfitError(f"{what} not a list of objects with role and content")
    return [message for message in found if message]


def _message(given: Any) -> dict[str, Any] | None:
    if not isinstance(given, Mapping):
        return None
    own = {name: value for name, value in given.items() if value is not None}
    if "role" not in own and "from" in own:
        speaker = own.pop("from")
        own = {"role": SPEAKERS.get(str(speaker), speaker), "content": own.pop("value", None), **own}
    content = own.get("content", "" if own.get("tool_calls") else None)
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    fits = isinstance(own.get("role"), str) and isinstance(content, str)
    return {**own, "content": content} if fits else None


def _tools(given: Any) -> list[Any]:
    """Descriptions of functions, which tables may hold as JSON."""
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        found = None
    if not (isinstance(found, list) and all(isinstance(tool, dict) for tool in found)):
        raise UnfitError("its tools are not a list of objects")
    return found


def read_rows(rows: Iterable[tuple[str, Any]], columns: Mapping[str, str] | None, bad: list[Unreadable]) -> Texts:
    """The rows that have a form, of (place, row or reason why it cannot be read); the others are added to `bad`."""
    kept: list[Row] = []
    places = []
    for place, row in rows:
        try:
            if isinstance(row, UnfitError):
                raise row
            kept.append(shaped(row, columns))
            places.append(place)
        except UnfitError as cause:
            bad.append(Unreadable(place, str(cause)))
    return Texts(kept, places)


def told(bad: Sequence[Unreadable], total: int) -> tuple[str, ...]:
    """A note for every reason why rows are left out."""
    notes = []
    for cause in sorted({row.cause for row in bad}):
        places = [row.path for row in bad if row.cause == cause]
        notes.append(f"left out {len(places):,} of {total:,} texts ({cause}): {some(places)}")
    return tuple(notes)


def in_order(label: str) -> tuple[list[str | int], str]:
    """Sorts labels by the numbers in them.

    >>> sorted(["10", "2", "-1", "level 10", "level 9"], key=in_order)
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
    names = tuple(sorted(labels, key=in_order))
    classes = dict(zip(names, names, strict=True)) if rule == "label" else {}
    parts, notes = three_parts_of(found, share, rule, seed, classes=classes, called="texts")
    splits = Splits(*parts, names, digest.hexdigest(), unreadable=found.unreadable, notes=(*found.notes, *notes))
    whole = replace(splits, test=found.train, notes=found.notes)
    return replace(splits, whole=whole if found.test is None else None)
