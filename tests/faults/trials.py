"""What was tried and what came of it."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.forking.commands import Done

REFUSALS = {1: "failed with one line", 2: "refused", 3: "refused as a mismatch", 130: "interrupted"}


@dataclass(frozen=True)
class Trial:
    """One fault.

    Attributes:
        area: as `files`.
        kind: what was done, as "one bit of an adapter".
        outcome: what came of it, in a few words.
        fault: what is wrong with that; None where the trial was survived.
    """

    area: str
    kind: str
    outcome: str
    fault: str | None = None


def complaint(done: Done, *, lines: int | None = 1) -> str | None:
    """What is wrong with the way in which a command ended, None where it ended well or said in one line why not.

    Args:
        lines: how many lines an error may have; None: any number, as the errors of a recipe.
    """
    if done.code < 0:
        name = signal.Signals(-done.code).name
        return "it hangs" if name == "SIGALRM" else f"it was ended by {name}: {done.err[-300:]}"
    if "\x1b" in done.err + done.out:
        return f"characters that a terminal obeys: {done.out[-300:]!r}"
    if "Traceback" in done.err + done.out:
        return f"a traceback: {done.err[-500:]}"
    if done.code == 0:
        return None
    if done.code not in REFUSALS:
        return f"exit code {done.code}: {done.err[-300:]}"
    said = done.err.split("superlora: ", 1)
    if len(said) != 2 or not said[1].endswith("\n") or (lines and said[1].count("\n") > lines):
        return f"not one line: {done.err[-300:]!r}"
    if not said[1].replace("\n", "").isprintable():
        return f"characters that a terminal obeys: {said[1]!r}"
    if "--debug" in said[1]:
        return f"unexpected error: {said[1].strip()}"
    return None


def outcome(done: Done) -> str:
    """In a few words."""
    return REFUSALS.get(done.code, "accepted" if done.code == 0 else f"exit code {done.code}")


def contents(place: Path) -> dict[str, bytes]:
    """Every file below a folder, or the file itself, by its path; {} where there is none."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in files}


def summary(trials: Iterable[Trial]) -> list[tuple[str, str, int, int, str]]:
    """(Area, kind, tried, survived, outcomes with their numbers) in the order of the trials."""
    found: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        found.setdefault((trial.area, trial.kind), []).append(trial)
    rows = []
    for (area, kind), same in found.items():
        counts = Counter(trial.outcome for trial in same)
        named = ", ".join(f"{name} {count}" if len(counts) > 1 else name for name, count in counts.most_common())
        rows.append((area, kind, len(same), sum(trial.fault is None for trial in same), named))
    return rows
