"""Rows of texts, in one of four forms: which columns a row has decides which.

    messages                    a conversation; the answers are learned; `tools` may describe functions to call
    prompt, choices, answer     a question with several answers, one of them right (its number, letter or text)
    prompt, completion          the completion is learned; both may be lists of messages
    text                        all of it is learned; with `label`, it belongs to a class

`data.columns` gives the columns other names, or makes a text of several: `{prompt: "Question: {question}"}`; for usual
data sets, `SHAPES` does. Rows of none of these forms are left out and reported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from superlora_cli.errors import UsageError

Row = Mapping[str, Any]
FORMS = (("messages",), ("prompt", "choices", "answer"), ("prompt", "completion"), ("text",))
LABEL, TOOLS = "label", "tools"
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
    label = own[LABEL]
    if learned == "text" and not (label is None or label != label or str(label).isspace() or label == ""):
        found[LABEL] = str(label)
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
