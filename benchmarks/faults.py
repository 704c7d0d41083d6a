"""Faults and bad input in large numbers: kills, full disks, bad files, recipes and images, two commands at once.

    python benchmarks/faults.py                           # about 1,700 trials, an hour on one core
    python benchmarks/faults.py --rounds 10 --seed 1      # ten times as many, others
    python benchmarks/faults.py --only kills recipes
    python benchmarks/faults.py --fill                    # docs/reliability.md again from what is on record

What is tried is in tests/faults, where `pytest -m faults` tries a little of it. Every area that was tried takes the
place of its lines in records/faults.jsonl, and with them the table in docs/reliability.md is made again. Exit code
1 if a trial was not survived.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from operator import itemgetter
from pathlib import Path

import pages
from recorded import Records, Row

sys.path.insert(0, str(pages.ROOT))

from tests.faults.areas import AREAS
from tests.faults.material import Material
from tests.faults.trials import Trial, summary
from tests.forking.commands import Commands

RECORDS, PAGE = Records("faults.jsonl", itemgetter("area")), pages.DOCS / "reliability.md"


def tried(area: str, material: Material, rounds: int, seed: int) -> list[Trial]:
    """All trials of an area; failures are printed as they happen."""
    trials, began = [], time.monotonic()
    for trial in AREAS[area][0](material, random.Random(f"{area} {seed}"), AREAS[area][2] * rounds):
        trials.append(trial)
        if trial.fault:
            print(f"{trial.area}, {trial.kind}: {trial.fault}", flush=True)
    survived = sum(trial.fault is None for trial in trials)
    print(f"{area}: {survived} of {len(trials)} survived, {time.monotonic() - began:.0f} s", flush=True)
    return trials


def as_rows(area: str, trials: list[Trial]) -> list[Row]:
    """For the record."""
    keys = ("faults", "kind", "tried", "survived", "outcome")
    return [{"area": area, **dict(zip(keys, row, strict=True))} for row in summary(trials)]


def table(rows: list[Row]) -> str:
    """A table of all rows, with a line for each area and one for all."""
    lines = ["| | what was done | tried | survived | what came of it |", "|---|---|---:|---:|---|"]
    for name in dict.fromkeys(row["faults"] for row in rows):
        own = [row for row in rows if row["faults"] == name]
        lines.append(f"| **{name}** | | **{_sum(own, 'tried')}** | **{_sum(own, 'survived')}** | |")
        lines += [f"| | {row['kind']} | {row['tried']} | {row['survived']} | {row['outcome']} |" for row in own]
    lines.append(f"| **all** | | **{_sum(rows, 'tried')}** | **{_sum(rows, 'survived')}** | |")
    return "\n".join(lines)


def _sum(rows: list[Row], key: str) -> str:
    return f"{sum(row[key] for row in rows):,}"


def places() -> pages.Places:
    """The generated part of the page."""
    return {(PAGE, "faults"): table(RECORDS.rows())}


def main() -> None:
    """Run the trials, record them and make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(AREAS), default=list(AREAS))
    parser.add_argument("--fill", action="store_true", help="fill the page, and try nothing")
    asked = parser.parse_args()
    survived = True
    if not asked.fill:
        with Commands() as commands, tempfile.TemporaryDirectory() as place:
            material = Material(commands, Path(place))
            for area in asked.only:
                trials = tried(area, material, asked.rounds, asked.seed)
                survived &= all(trial.fault is None for trial in trials)
                RECORDS.replace(area, as_rows(area, trials), AREAS)
    pages.fill(places())
    sys.exit(not survived)


if __name__ == "__main__":
    main()
