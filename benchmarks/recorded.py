"""Results on record: files in records/ with a row of JSON on each line, which benchmarks extend and pages quote."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "records"
LONGEST = 300  # characters of a value that is printed
Row = dict[str, Any]


class Records:
    """The rows of a file.

    Args:
        file: its name in records/.
        key: what a row is known by.
    """

    def __init__(self, file: str | Path, key: Callable[[Row], Any]) -> None:
        self.file, self.key = FOLDER / file, key

    def rows(self) -> list[Row]:
        """All of them, in order."""
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        return [json.loads(line) for line in lines]

    def known(self) -> dict[Any, Row]:
        """The newest row of every key."""
        return {self.key(row): row for row in self.rows()}

    def add(self, row: Row) -> None:
        """Put a row at the end, and print it without its long values."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        print({name: value for name, value in row.items() if len(str(value)) <= LONGEST}, flush=True)

    def make(self, work: Callable[..., Row], jobs: Mapping[Hashable, tuple[Any, ...]], pool: Executor) -> None:
        """Carry out the jobs, key → arguments of `work`, that are not on record, and add the row of each as it ends."""
        known = self.known()
        missing = [arguments for key, arguments in jobs.items() if key not in known]
        for done in as_completed([pool.submit(work, *arguments) for arguments in missing]):
            self.add(done.result())

    def write(self, rows: Iterable[Row]) -> None:
        """Put these in the place of all that there are."""
        self.file.write_text("".join(map(_line, rows)), encoding="utf-8")

    def replace(self, key: Any, rows: Iterable[Row], order: Iterable[Any]) -> None:
        """Put these in the place of those with a key, and all in the order of the keys; other keys' are dropped."""
        found: dict[Any, list[Row]] = {}
        for row in self.rows():
            found.setdefault(self.key(row), []).append(row)
        found[key] = list(rows)
        self.write(row for each in order for row in found.get(each, ()))


def key_of(*parts: Any) -> str:
    """A key of all that makes a run that run, in JSON.

    >>> key_of({"rank": 1, "method": "lora"}, 0.1)
    '[{"method": "lora", "rank": 1}, 0.1]'
    """
    return json.dumps(parts, sort_keys=True)


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def processes(count: int) -> Executor:
    """A pool of new processes."""
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))
