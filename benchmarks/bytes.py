"""Accuracy against bytes: adapters of a few bits a number on the task of head_to_head.py.

    python benchmarks/bytes.py              # runs what is missing, most important first; fills docs/bytes.md
    python benchmarks/bytes.py --list       # what is missing
    python benchmarks/bytes.py --workers 2
    python benchmarks/bytes.py --base vits14.safetensors --data data     # the runs on the real base, too

Settings of ours are trained as in head_to_head.py, whose records the other methods' lines are from, at 4 bytes a
number. The rate is the one of the page's ablation. Results are kept in records/bytes.jsonl, one run a line; those on
the real base are trained as in real_base.py, and kept in records/few_shot.jsonl. `bytes_runs.py` has the runs,
`bytes_tried.py` what they try beside the knobs, `bytes_tables.py` what the page shows.
"""

from __future__ import annotations

import argparse

import few_shot
import pages
from bytes_runs import RECORDS, missing, on_the_real_base, train
from bytes_tables import ablation, claim, draw, longer, real_table, table
from recorded import processes

PAGE = pages.DOCS / "bytes.md"


def places() -> pages.Places:
    """What the page shows."""
    found = {"claim": claim(), "longer": longer(), "results": table(), "ablation": ablation(), "real": real_table()}
    return {(PAGE, place): text for place, text in found.items()}


def main() -> None:
    """Make what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    few_shot.options(parser)
    parser.add_argument("--list", action="store_true", help="show the missing runs and make none")
    options = parser.parse_args()
    if options.list:
        print("\n".join(run.key for run in missing()))
        return
    with processes(options.workers) as pool:
        while runs := missing():
            RECORDS.make(train, {run.key: (run,) for run in runs}, pool)
        if options.base:
            few_shot.make([run for runs in on_the_real_base() for run in runs], options, pool)
    draw()
    pages.fill(places())
    print(*places().values(), sep="\n\n")


if __name__ == "__main__":
    main()
