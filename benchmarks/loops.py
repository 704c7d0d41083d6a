"""Common training loops, tried with every variant on every execution path.

    python benchmarks/loops.py                    # about 600 trainings of three steps
    python benchmarks/loops.py --only plain 'torch.func: grad, vmap, jvp'
    python benchmarks/loops.py --fill             # docs/reliability.md again from what is on record

What is tried is in tests/loops, where `pytest tests/loops` tries a little of it: an adapter of a few numbers is trained
for three steps in float64, and its factors, the model's outputs and those of the merged model are compared with plain
autograd from the paper's formulas (`adapter/naive.py`). Every loop that was tried takes the place of its lines in
records/loops.jsonl, and with them the table in docs/reliability.md is made again. Exit code 1 if one is wrong.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from operator import itemgetter

import pages
from recorded import Records, Row

sys.path.insert(0, str(pages.ROOT))

RECORDS, PAGE = Records("loops.jsonl", itemgetter("loop")), pages.DOCS / "reliability.md"


def table(rows: list[Row]) -> str:
    """A row per loop, a column per variant: correct comparisons out of those tried, over all execution paths."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    lines = [f"| loop | {' | '.join(variants)} | tried | right |", f"|---|{'---:|' * (len(variants) + 2)}"]
    for loop in dict.fromkeys(row["loop"] for row in rows):
        own = [row for row in rows if row["loop"] == loop]
        cells = [_cell([row for row in own if row["variant"] == variant]) for variant in variants]
        lines.append(f"| {loop} | {' | '.join(cells)} | {_sum(own, 'tried')} | {_sum(own, 'right')} |")
    cells = [_cell([row for row in rows if row["variant"] == variant]) for variant in variants]
    lines.append(f"| **all** | {' | '.join(cells)} | **{_sum(rows, 'tried'):,}** | **{_sum(rows, 'right'):,}** |")
    return "\n".join(lines)


def _cell(rows: list[Row]) -> str:
    return f"{_sum(rows, 'right')}/{_sum(rows, 'tried')}"


def _sum(rows: list[Row], key: str) -> int:
    return sum(row[key] for row in rows)


def places() -> pages.Places:
    """The generated part of the page."""
    return {(PAGE, "loops"): table(RECORDS.rows())}


def main() -> None:
    """Run the loops, record them and make the table."""
    from tests.loops.loops import LOOPS
    from tests.loops.trials import tried
    from tests.loops.work import cases

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(LOOPS), default=list(LOOPS))
    parser.add_argument("--fill", action="store_true", help="fill the page, and try nothing")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    right = True
    for loop in [] if asked.fill else asked.only:
        rows = []
        for variant, path in cases():
            found = tried(loop, variant, path)
            wrong = {what: said for what, said in found.items() if said is not None}
            about = {"loop": loop, "variant": variant, "path": path, "compared": list(found)}
            rows.append(about | {"tried": len(found), "right": len(found) - len(wrong)})
            right &= not wrong
            for what, said in wrong.items():
                print(f"{loop}, {variant}, {path}: {what}: {said}", flush=True)
        print(f"{loop}: {_cell(rows)}", flush=True)
        RECORDS.replace(loop, rows, LOOPS)
    pages.fill(places())
    sys.exit(not right)


if __name__ == "__main__":
    main()
