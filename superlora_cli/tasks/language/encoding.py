"""Texts as tokens, and which of them are learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from superlora_cli.data.texts import Row
from superlora_cli.errors import UsageError


class Piece(NamedTuple):
    """A part of a text, and whether it is learned."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Encoded:
    """Sequences of tokens, one after another.

    Attributes:
        tokens: of all sequences.
        learned: whether a token is to be predicted.
        starts: where each sequence starts, and the end of the last one.
        bytes: of all that is learned, in UTF-8.
        notes: what the user should know, one line each.
    """

    tokens: np.ndarray
    learned: np.ndarray
    starts: np.ndarray
    bytes: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.diff(self.starts)


def pieces(row: Row, tokenizer: Any) -> list[Piece]:
    """The parts of a row.

    Raises:
        UsageError: it is a conversation, and the tokenizer has no usable template for them.
    """
    if "messages" in row:
        return list(_conversation(row["messages"], tokenizer))
    if "choices" in row:
        return [Piece(row["prompt"], False), Piece(row["choices"][row["answer"]], True)]
    if "prompt" in row:
        return [Piece(row["prompt"], False), Piece(row["completion"], True)]
    return [Piece(row["text"], True)]


def encode(rows: Sequence[Row], tokenizer: Any, length: int, *, ended: bool = True) -> Encoded:
    """Rows as sequences of at most `length` tokens, each with the token that ends a text unless `ended` is False.

    A text that is longer, and all of which is learned, becomes several sequences; else its end is cut off, and it is
    left out if nothing that is learned remains.

    Raises:
        UsageError: nothing remains, or as `pieces`.
    """
    parts = [pieces(row, tokenizer) for row in rows]
    end = tokenizer.eos_token_id
    opened = iter(_ids(tokenizer, [own[0].text for own, row in zip(parts, rows, strict=True) if "messages" not in row],
                       special=True))  # fmt: skip
    inner = iter(_ids(tokenizer, [piece.text for own, row in zip(parts, rows, strict=True)
                                  for piece in own[0 if "messages" in row else 1:]], special=False))  # fmt: skip
    tokens, learned, lengths = [], [], []
    size = cut = lost = 0
    for own, row in zip(parts, rows, strict=True):
        talk = "messages" in row
        ids = [next(inner if talk or number else opened) for number in range(len(own))]
        if ended and end is not None and not talk and (not ids[-1] or ids[-1][-1] != end):
            ids[-1] = [*ids[-1], end]
        whole = np.concatenate([np.asarray(one, np.int32) for one in ids])
        marks = np.repeat([piece.learned for piece in own], [len(one) for one in ids])
        longer = len(whole) > length
        cut += longer
        if len(own) > 1:
            whole, marks = whole[:length], marks[:length]
        for start in range(0, len(whole), length):
            part, marked = whole[start : start + length], marks[start : start + length].copy()
            marked[0] = False  # nothing comes before it
            if not marked.any():
                lost += len(own) > 1
                continue
            if longer and len(own) > 1:
                size += len(tokenizer.decode(part[marked]).encode(errors="surrogatepass"))
            elif not start:
                size += sum(len(piece.text.encode(errors="surrogatepass")) for piece in own if piece.learned)
            tokens.append(part)
            learned.append(marked)
            lengths.append(len(part))
    if not tokens:
        raise UsageError(f"nothing is left to learn of texts of {length} tokens", where="language.length",
                         hint="a greater length")  # fmt: skip
    notes = []
    if cut:
        notes.append(f"{cut:,} of {len(rows):,} texts are longer than {length:,} tokens and are cut")
    if lost:
        notes.append(f"left out {lost:,} of {len(rows):,} texts (no token of the completion is left)")
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(np.concatenate(tokens), np.concatenate(learned), starts, size, tuple(notes))


def encode_whole(rows: Sequence[Row], tokenizer: Any, length: int) -> Encoded:
    """Rows with labels as one sequence each, of at most `length` tokens, of which none is to be predicted."""
    ids = tokenizer([row["text"] for row in rows], verbose=False)["input_ids"]
    cut = sum(len(own) > length for own in ids)
    ids = [np.asarray(own[:length], np.int32) for own in ids]
    starts = np.concatenate([[0], np.cumsum([len(own) for own in ids])])
    notes = (f"{cut:,} of {len(ids):,} texts are longer than {length:,} tokens and are cut",) if cut else ()
    return Encoded(np.concatenate(ids), np.zeros(int(starts[-1]), bool), starts, 0, notes)


def _ids(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    if not texts:
        return []
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    return found


def _conversation(messages: Sequence[dict[str, str]], tokenizer: Any) -> Iterator[Piece]:
    """The parts of a conversation, by the tokenizer's own template; the answers are learned.

    Raises:
        UsageError: the tokenizer has none, or it is not one that only adds to what it has written.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        hint = "columns prompt and completion, or a model with a chat template"
        raise UsageError("the model's tokenizer has no chat template", where="data.columns", hint=hint)

    def written(count: int, *, asks: bool) -> str:
        try:
            text: str = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=asks)
        except Exception as error:  # a template raises whatever it likes
            raise UsageError(f"the chat template refuses a conversation: {error}", where="data.name") from None
        return text

    done = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = written(number, asks=True), written(number + 1, asks=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise UsageError("the chat template changes what it has written before", where="data.name",
                             hint="conversations with a single answer")  # fmt: skip
        yield Piece(before[len(done) :], False)
        yield Piece(after[len(before) :], True)
        done = after
