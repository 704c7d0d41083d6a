"""Made problems: sums and differences in several notations, with their answers.

A pair of numbers is in the training part or in a held-out one for all notations, both operations and either order. So
no held-out problem can have been seen, also where one notation is learned after another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SPLITS = {"train": 0, "validation": 1, "test": 2}
PARTS = 20  # of all pairs: one for validation, one for test, the others for training
KNUTH = 2654435761  # a multiplicative hash
SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ROMAN = ((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"),
         (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))  # fmt: skip


def in_words(number: int) -> str:
    """A number below 1,000.

    >>> in_words(37), in_words(140), in_words(608)
    ('thirty-seven', 'one hundred and forty', 'six hundred and eight')
    """
    if number < len(SMALL):
        return SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens - 2] + (f"-{SMALL[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{SMALL[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")


def in_roman(number: int) -> str:
    """A Roman numeral; N is zero, as Bede writes it.

    >>> in_roman(122), in_roman(49), in_roman(0)
    ('CXXII', 'XLIX', 'N')
    """
    found = ""
    for value, letters in ROMAN:
        count, number = divmod(number, value)
        found += letters * count
    return found or "N"


class Problem(NamedTuple):
    """Two numbers, to add or to subtract; the first is not the smaller one of a difference."""

    first: int
    second: int
    minus: bool

    @property
    def result(self) -> int:
        return self.first - self.second if self.minus else self.first + self.second

    @property
    def digits(self) -> str:
        """`37+85=`."""
        return f"{self.first}{'-' if self.minus else '+'}{self.second}="

    @property
    def words(self) -> str:
        """`thirty-seven plus eighty-five is`."""
        return f"{in_words(self.first)} {'minus' if self.minus else 'plus'} {in_words(self.second)} is"


class Notation(NamedTuple):
    """How problems are written: a prompt and a completion, for numbers of at most so many digits."""

    prompt: Callable[[Problem], str]
    completion: Callable[[Problem], str]
    digits: int


NOTATIONS = {
    "sums": Notation(lambda own: own.digits, lambda own: str(own.result), 3),
    "sums-in-words": Notation(lambda own: own.words, lambda own: f" {in_words(own.result)}", 2),
    "sums-reversed": Notation(lambda own: own.digits, lambda own: str(own.result)[::-1], 3),
    "sums-in-roman": Notation(lambda own: own.digits, lambda own: in_roman(own.result), 2),
    "sums-in-octal": Notation(lambda own: own.digits, lambda own: f"{own.result:o}", 2),
}


def problems(split: str, count: int, digits: int, seed: int = 0) -> list[Problem]:
    """Problems of a split, with all lengths of numbers equally frequent; fewer than `count` if there are not so many.

    >>> problems("test", 2, 2)
    [Problem(first=91, second=2, minus=True), Problem(first=4, second=0, minus=True)]
    """
    rng = np.random.RandomState([seed, SPLITS[split], digits])
    pairs = 10 ** (2 * digits)
    share = pairs * (PARTS - 2 if split == "train" else 1) // PARTS
    found: list[Problem] = []
    while len(found) < min(count, 2 * share):
        lengths = rng.randint(0, digits, size=(2, pairs))
        low = np.where(lengths == 0, 0, 10**lengths)
        numbers = low + (rng.random_sample(lengths.shape) * (10 ** (lengths + 1) - low)).astype(np.int64)
        small, large = numbers.min(0), numbers.max(0)
        part = ((small * 1009 + large) * KNUTH % 2**32 >> 16) % PARTS
        own = {"validation": part == 0, "test": part == 1, "train": part > 1}[split]
        minus = rng.random_sample(pairs) < 0.5
        first, second = np.where(minus, large, numbers[0])[own], np.where(minus, small, numbers[1])[own]
        found += map(Problem, first.tolist(), second.tolist(), minus[own].tolist())
    return found[: min(count, 2 * share)]
