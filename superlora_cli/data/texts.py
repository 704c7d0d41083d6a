"""Texts to train on, as a data set: rows of a form (`text_rows`), and how they are held out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch.utils.data import Dataset

from superlora_cli.data.folder import some
from superlora_cli.data.holding_out import three_parts_of
from superlora_cli.data.source import Splits, Unreadable
from superlora_cli.data.text_rows import LABEL, Row, UnfitError, shaped

NUMBER = re.compile(r"((?<!\w)-?\d+|\d+)")


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
