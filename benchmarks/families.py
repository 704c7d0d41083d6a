"""Families of timm on the way of `tests/families.py`: init → train → merge → timm → export → PEFT.

    python benchmarks/families.py              # those that are not on record yet, then docs/families.md
    python benchmarks/families.py --only NAME  # one of them again

Needs the `bench` extra. The record is records/families.jsonl, a line a model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path

from pages import DOCS, ROOT, Places, fill
from recorded import Records, Row

sys.path.insert(0, str(ROOT))
from tests.families import FAMILIES, StoppedError, walk

RECORDS = Records("families.jsonl", itemgetter("model"))


def taken(name: str) -> Row:
    """The result for a model; `stopped` where a command failed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return asdict(walk(name, Path(folder)))
        except StoppedError as error:
            return {"model": name, "stopped": " ".join(str(error).replace(folder, "").split())}


def table(rows: dict[str, Row]) -> str:
    """Markdown."""
    columns = "model", "weights adapted", "adapter", "head", "without ΔW", "merged, in timm", "exported, in PEFT"
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---:|---:|---:|---:|---|"]
    for name in FAMILIES:
        if (row := rows.get(name)) is None:
            continue
        if "stopped" in row:
            lines.append(f"| `{name}` | | | | | | {row['stopped']} |")
            continue
        exported = f"refused: {row['refused']}" if row["refused"] else f"{row['exported']:.0e}"
        numbers = (
            f"{row['targets']} | {row['adapter']:,} | {row['head']:,} | {row['changed']:.0e} | {row['merged']:.0e}"
        )
        lines.append(f"| `{name}` | {numbers} | {exported} |")
    return "\n".join(lines)


def places() -> Places:
    """The generated part of the docs."""
    return {(DOCS / "families.md", "families"): table(RECORDS.known())}


def main() -> None:
    """Run, record and fill in the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAMILIES)
    only = parser.parse_args().only
    known = RECORDS.known()
    for name in [only] if only else [name for name in FAMILIES if name not in known]:
        print(row := taken(name), flush=True)
        RECORDS.replace(name, [row], FAMILIES)
    fill(places())


if __name__ == "__main__":
    main()
