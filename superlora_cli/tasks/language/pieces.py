"""Texts as pieces, of which some are learned; those of a conversation are cut as the tokenizer's template writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from superlora_cli.data.text_rows import TOOLS, Row, UnfitError, conversation
from superlora_cli.errors import UsageError

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # around the answers, in templates that mark them
STAND_IN = re.compile("\ue000(\\d+)\ue001")  # for the content of a message
ASSISTANT = "assistant"
FRAMES = 64  # that are remembered of a tokenizer
Span = tuple[int, int]


class Piece(NamedTuple):
    """A part of a text, and whether it is learned."""

    text: str
    learned: bool


def pieces(row: Row, tokenizer: Any) -> list[Piece]:
    """The pieces of a row. A conversation ends with its last answer.

    Raises:
        UsageError: it is a conversation, and the tokenizer has no template for them.
        UnfitError: the template refuses it.
    """
    if conversation(row):
        return list(_of_conversation(row, tokenizer))
    if "choices" in row:
        return [Piece(row["prompt"], False), Piece(row["choices"][row["answer"]], True)]
    if "prompt" in row:
        return [Piece(row["prompt"], False), Piece(row["completion"], True)]
    return [Piece(row["text"], True)]


def answers(row: Row) -> list[int]:
    """The numbers of those messages of a conversation that should be learned."""
    talk, first = conversation(row), len(row["prompt"]) if "prompt" in row else 0
    return [number for number, message in enumerate(talk) if number >= first and message["role"] == ASSISTANT]


def _of_conversation(row: Row, tokenizer: Any) -> Iterator[Piece]:
    """Learned are the parts between `{% generation %}` and `{% endgeneration %}`, if the template has them. Otherwise,
    every answer: from where the template's request for it ends to the token that ends it, both included in what the
    template writes of the whole conversation. If it changes contents so that they are not found, the last answer only.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        hint = "language.chat_template, columns prompt and completion, or a model with a chat template"
        raise UsageError("the model's tokenizer has no chat template", where="data.columns", hint=hint)
    talk, tools, wanted = conversation(row), row.get(TOOLS), answers(row)
    if GENERATION.search(tokenizer.get_chat_template(tools=tools)):
        text, spans = _marked(tokenizer, talk, tools)
        spans = spans[-len(wanted) :]
    else:
        text = _written(tokenizer, talk, tools)
        found = _found(text, talk, tools, tokenizer)
        spans = [found[number] for number in wanted] if found else []
        if not spans:
            text, spans = _last(tokenizer, talk[: wanted[-1] + 1], tools)
    done = 0
    for start, stop in spans:
        if start > done:
            yield Piece(text[done:start], False)
        yield Piece(text[start:stop], True)
        done = stop


def requested(prompt: str, system: str | None, tokenizer: Any) -> str:
    """A request for an answer, as the template of conversations writes it.

    Raises:
        UsageError: the tokenizer has no template, or it refuses the request.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        hint = "language.chat_template, or leave it out"
        raise UsageError("the model's tokenizer has no chat template", where="--chat", hint=hint)
    before = [] if system is None else [{"role": "system", "content": system}]
    try:
        return _written(tokenizer, [*before, {"role": "user", "content": prompt}], None, asks=True)
    except UnfitError as error:
        raise UsageError(str(error), where="--chat", hint="leave out --system, or --chat") from None


def _written(tokenizer: Any, talk: Sequence[Any], tools: Any, *, asks: bool = False) -> str:
    try:
        text: str = tokenizer.apply_chat_template(list(talk), tools=tools, tokenize=False, add_generation_prompt=asks)
    except Exception as error:  # a template raises whatever it likes
        raise UnfitError(f"the chat template refuses it: {error}") from None
    return text


def _marked(tokenizer: Any, talk: Sequence[Any], tools: Any) -> tuple[str, list[Span]]:
    """A conversation, and the parts of it that the template says are answers."""
    from transformers.utils import chat_template_utils

    render: Any = chat_template_utils.render_jinja_template
    given = {"chat_template": tokenizer.get_chat_template(tools=tools), "tools": tools, **tokenizer.special_tokens_map}
    try:
        (text,), (spans,) = render([list(talk)], return_assistant_tokens_mask=True, **given)
    except Exception as error:
        raise UnfitError(f"the chat template refuses it: {error}") from None
    found = [(start, stop) for start, stop in spans if start < stop]
    if not found:
        raise UnfitError("the chat template marks no answer in it")
    return text, found


def _last(tokenizer: Any, talk: Sequence[Any], tools: Any) -> tuple[str, list[Span]]:
    """A conversation up to its last answer, and where this is."""
    before, text = _written(tokenizer, talk[:-1], tools, asks=True), _written(tokenizer, talk, tools)
    if not text.startswith(before):
        raise UnfitError("the chat template does not write an answer after the request for it")
    content = talk[-1]["content"].strip()
    end = text.rfind(content) + len(content) if content in text else len(before)
    found = _special(tokenizer).search(text, max(end, len(before)))
    return text, [(len(before), found.end() if found else len(text.rstrip()))]


def _special(tokenizer: Any) -> re.Pattern[str]:
    """Matches special tokens."""
    named = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    words = {*tokenizer.all_special_tokens, *(token.content for token in named)} - {""}
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")


class Frame(NamedTuple):
    """What a template writes around the contents of a conversation's messages.

    Attributes:
        text: the conversation with a stand-in for every content.
        spans: of every answer, by the number of its message.
    """

    text: str
    spans: Mapping[int, Span]


_KNOWN: WeakKeyDictionary[Any, dict[str, Frame | None]] = WeakKeyDictionary()


def _found(text: str, talk: Sequence[Any], tools: Any, tokenizer: Any) -> dict[int, Span] | None:
    """Where the answers are in a conversation as a template has written it, by the numbers of their messages; None if
    it changes contents."""
    bare = [{**message, "content": bool(message["content"])} for message in talk]
    known, key = _KNOWN.setdefault(tokenizer, {}), json.dumps([tokenizer.get_chat_template(tools=tools), bare, tools])
    if key not in known:
        if len(known) >= FRAMES:
            known.clear()
        known[key] = _frame(bare, tools, tokenizer)
    frame = known[key]
    if frame is None:
        return None
    moved, done = [], 0  # how much further right what follows a stand-in is in the text
    matches = list(STAND_IN.finditer(frame.text))
    for match, following in zip([None, *matches], [*matches, None], strict=True):
        start = match.end() if match else 0
        fixed = frame.text[start : following.start() if following else len(frame.text)]
        content = talk[int(match[1])]["content"] if match else ""
        forms = dict.fromkeys((content, content.strip(), content.rstrip(), content.lstrip(), content.strip("\n")))
        own = next((form for form in forms if text.startswith(form + fixed, done)), None)
        if own is None:
            return None
        moved.append((start, done + len(own) - start))
        done += len(own) + len(fixed)
    if done != len(text):
        return None

    def place(old: int) -> int:
        return old + next(by for start, by in reversed(moved) if start <= old)

    return {number: (place(start), place(stop)) for number, (start, stop) in frame.spans.items()}


def _frame(bare: Sequence[Mapping[str, Any]], tools: Any, tokenizer: Any) -> Frame | None:
    """The frame of a conversation, of whose contents only is known whether there are any; None if it has none."""
    talk = [{**message, "content": f"\ue000{number}\ue001" if message["content"] else ""}
            for number, message in enumerate(bare)]  # fmt: skip

    def written(count: int, *, asks: bool) -> str:
        try:
            return _written(tokenizer, talk[:count], tools, asks=asks)
        except UnfitError:
            return ""

    text, special = written(len(talk), asks=False), _special(tokenizer)
    spans = {number: _answer(text, number, message["content"], written, special)
             for number, message in enumerate(talk) if message["role"] == ASSISTANT}  # fmt: skip
    known = {number: span for number, span in spans.items() if span}
    return Frame(text, known) if len(known) == len(spans) else None


def _answer(text: str, number: int, content: str, written: Callable[..., str], special: re.Pattern[str]) -> Span | None:
    """Where an answer is in a conversation, if the template says so by what it writes up to there.

    Args:
        content: a stand-in; empty in an answer of tool calls only.
        written: gives the text of the first messages.
        special: matches special tokens.
    """
    own = text.find(content) if content else 0
    asked, same = _common(text, written(number, asks=True))
    if own < 0 or not (content or same):
        return None
    start = asked if same and (asked <= own or not content) else own
    body = own + len(content) if content else start
    following = STAND_IN.search(text, body)
    after, same = _common(text, written(number + 1, asks=False))
    known = same or (bool(content) and after > body)
    limit = after if known else following.start() if following else len(text)
    ends = [match.end() for match in special.finditer(text, body, limit)]
    if ends:
        end = ends[0] if content or not known else ends[-1]
    else:  # what the template writes in place of one, without the line break behind it
        rest = text[body:limit] if known else ""
        end = body + len(rest.rstrip() or rest)
    return (start, end) if end > start else None


def _common(text: str, part: str) -> tuple[int, bool]:
    """Up to where a text is the same as another after the last stand-in of that, and whether this is all of it."""
    *_, last = [None, *STAND_IN.finditer(part)]
    rest, start = part[last.end() if last else 0 :], text.find(last[0]) + len(last[0]) if last else 0
    count = next((at for at, (one, other) in enumerate(zip(text[start:], rest, strict=False)) if one != other),
                 min(len(text) - start, len(rest)))  # fmt: skip
    return start + count, bool(part) and count == len(rest)
