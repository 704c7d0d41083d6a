"""Texts as tokens, and which of them are learned."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from superlora_cli.data.source import Unreadable
from superlora_cli.data.text_rows import Row, UnfitError, conversation
from superlora_cli.data.texts import told
from superlora_cli.errors import UsageError
from superlora_cli.progress import with_bar
from superlora_cli.tasks.language.pieces import Piece, answers, pieces

CHUNK = 1000  # texts that are cut into tokens at a time


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


class Question(NamedTuple):
    """The tokens up to what is learned last of a text, and the text of that, without the token that ends it."""

    prompt: list[int]
    answer: str


def encode(
    rows: Sequence[Row], tokenizer: Any, length: int, *, ended: bool = True, places: Sequence[str] = ()
) -> Encoded:
    """Rows as sequences of at most `length` tokens, each with the token that ends a text unless `ended` is False.

    A text that is longer, and all of which is learned, becomes several sequences; else its end is cut off, and it is
    left out if nothing that is learned remains.

    Args:
        places: where each row is from, by which those that the chat template refuses are named.

    Raises:
        UsageError: nothing remains, or as `pieces`.
    """
    end = tokenizer.eos_token_id
    tokens, learned, bad = [], [], []
    size = cut = lost = partly = 0
    for numbers in _chunks(len(rows)):
        parts = {}
        for number in numbers:
            try:
                parts[number] = pieces(rows[number], tokenizer)
            except UnfitError as cause:
                bad.append(Unreadable(places[number] if places else f"text {number + 1}", str(cause)))
        talks = [bool(conversation(rows[number])) for number in parts]
        for number, talk, ids in zip(parts, talks, _ids(list(parts.values()), talks, tokenizer), strict=True):
            own = parts[number]
            partly += talk and sum(piece.learned for piece in own) < len(answers(rows[number]))
            if ended and end is not None and not talk and ids[-1][-1:] != [end]:
                ids[-1] = [*ids[-1], end]
            whole = np.fromiter(chain.from_iterable(ids), np.int32)
            marks = np.repeat([piece.learned for piece in own], [len(one) for one in ids])
            longer = len(whole) > length
            cut += longer
            if len(own) > 1:
                whole, marks = whole[:length], marks[:length]
            for start in range(0, len(whole), length):
                part, marked = whole[start : start + length], marks[start : start + length].copy()
                if marked[0]:  # nothing comes before it: neither its loss nor its bytes count
                    size -= _bytes(tokenizer, part[:2]) - _bytes(tokenizer, part[1:2])
                    marked[0] = False
                if not marked.any():
                    lost += len(own) > 1
                    continue
                if longer and len(own) > 1:
                    size += len(tokenizer.decode(part[marked]).encode(errors="surrogatepass"))
                elif not start:
                    size += sum(len(piece.text.encode(errors="surrogatepass")) for piece in own if piece.learned)
                tokens.append(part)
                learned.append(marked)
    notes = told(bad, len(rows))
    if not tokens and bad:
        raise UsageError(f"no text can be used: {bad[0].cause}", where=bad[0].path, hint="another chat template")
    if not tokens:
        raise UsageError(f"nothing is left to learn of texts of {length} tokens", where="language.length",
                         hint="a greater length")  # fmt: skip
    if partly:
        notes += (f"of {partly:,} of {len(rows):,} texts only the last answer is learned "
                  "(the chat template changes earlier ones)",)  # fmt: skip
    if cut:
        notes += (f"{cut:,} of {len(rows):,} texts are longer than {length:,} tokens and are cut",)
    if lost:
        notes += (f"left out {lost:,} of {len(rows):,} texts (no token of the completion is left)",)
    return Encoded(np.concatenate(tokens), np.concatenate(learned), _starts(tokens), size, notes)


def _bytes(tokenizer: Any, tokens: np.ndarray) -> int:
    """Bytes of the text of some tokens; those that a tokenizer adds to texts have none."""
    return len(tokenizer.decode(tokens, skip_special_tokens=True).encode(errors="surrogatepass"))


def encode_whole(rows: Sequence[Row], tokenizer: Any, length: int) -> Encoded:
    """Rows with labels as one sequence each, of at most `length` tokens, of which none is to be predicted."""
    ids: list[np.ndarray] = []
    cut = 0
    for numbers in _chunks(len(rows)):
        texts = [rows[number]["text"] for number in numbers]
        found = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        cut += sum(len(own) > length for own in found)
        ids += [np.asarray(own[:length], np.int32) for own in found]
    notes = (f"{cut:,} of {len(ids):,} texts are longer than {length:,} tokens and are cut",) if cut else ()
    starts = _starts(ids)
    return Encoded(np.concatenate(ids), np.zeros(int(starts[-1]), bool), starts, 0, notes)


def check_tokens(tokens: np.ndarray, tokenizer: Any, model: Any) -> None:
    """Refuse tokens that a model has no embedding for.

    Raises:
        UsageError: names the token.
    """
    known, highest = int(model.get_input_embeddings().num_embeddings), int(tokens.max())
    if highest >= known:
        name = tokenizer.convert_ids_to_tokens(highest)
        hint = "the model's own tokenizer; or model.resize_token_embeddings(len(tokenizer)), then save_pretrained"
        raise UsageError(f"has {known:,} embeddings, none for token {highest} {name!r}", where="model.name", hint=hint)


def question(row: Row, tokenizer: Any) -> Question:
    """What a model is asked by a row, and what it should answer.

    Raises:
        UsageError, UnfitError: as `pieces`.
    """
    (ids,) = _ids([pieces(row, tokenizer)], [bool(conversation(row))], tokenizer)
    return Question(list(chain.from_iterable(ids[:-1])), tokenizer.decode(ids[-1], skip_special_tokens=True))


def prompt_ids(text: str, tokenizer: Any, *, talk: bool = False) -> list[int]:
    """The tokens of a prompt, as in training: with those before every text, unless it is one of conversations."""
    (ids,) = _ids([[Piece(text, False)]], [talk], tokenizer)
    return ids[0]


def _chunks(count: int) -> Iterator[range]:
    """Numbers of texts, some at a time; with a bar, if there are many."""
    parts = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    yield from with_bar(parts, "texts as tokens", total=count, size=len) if parts[1:] else parts


def _starts(sequences: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(own) for own in sequences])])


def _ids(parts: Sequence[Sequence[Piece]], talks: Sequence[bool], tokenizer: Any) -> list[list[list[int]]]:
    """The tokens of every piece of texts.

    Before a text that is no conversation come the tokens that the tokenizer puts before every text; those that it puts
    behind one, such as its end, are left out.
    """
    if tokenizer.is_fast:
        found = [_cut(*each, tokenizer) for each in _together(parts, tokenizer)]
    else:
        found = [_apart(own, tokenizer) for own in parts]
    first = _opening(tokenizer)
    for ids, talk in zip(found, talks, strict=True):
        if not talk and ids[0][: len(first)] != first:
            ids[0] = [*first, *ids[0]]
    return found


def _opening(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts before every text."""
    plain, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return next((full[:at] for at in range(len(full)) if full[at : at + len(plain)] == plain), [])


def _apart(own: Sequence[Piece], tokenizer: Any) -> list[list[int]]:
    """The tokens of pieces, each cut into tokens by itself."""
    texts = [piece.text for piece in own]
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _together(parts: Sequence[Sequence[Piece]], tokenizer: Any) -> Iterator[tuple[Sequence[Piece], list[int], Any]]:
    """Pieces with the tokens of the whole text, and where these are in it."""
    texts = ["".join(piece.text for piece in own) for own in parts]
    if not texts:
        return
    batch = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    yield from zip(parts, batch["input_ids"], batch.encodings, strict=True)


def _cut(own: Sequence[Piece], ids: list[int], encoding: Any, tokenizer: Any) -> list[list[int]]:
    """The tokens of every piece, of those of the whole text.

    Where a token lies across the border of two pieces, the pieces are cut into tokens by themselves, so that a model
    that is given the prompt's own tokens goes on as it was trained. Only if that would be another text (a tokenizer may
    put a space before every text) such a token belongs to the piece that it ends in.
    """
    if len(own) == 1:
        return [ids]
    borders = list(accumulate(len(piece.text) for piece in own[:-1]))
    at = [_beginning(encoding, border) for border in borders]
    if None in at:
        apart = _apart(own, tokenizer)
        if tokenizer.decode(list(chain.from_iterable(apart))) == tokenizer.decode(ids):
            return apart
        ends = [end for _, end in encoding.offsets]
        at = [bisect_right(ends, border) for border in borders]
    return [ids[start:stop] for start, stop in pairwise([0, *at, len(ids)])]


def _beginning(encoding: Any, place: int) -> int | None:
    """The token that begins at a place of a text, right behind another one; None if there is none."""
    if place == 0:
        return 0
    before, after = encoding.char_to_token(place - 1), encoding.char_to_token(place)
    return after if before is not None and after is not None and before < after else None
