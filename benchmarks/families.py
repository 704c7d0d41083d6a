"""Families of timm on the way of `tests/families.py`: init → train → merge → timm → export → PEFT.

    python benchmarks/families.py              # those that are not on record yet, then docs/families.md
    python benchmarks/families.py --only NAME  # one of them again

Needs the `bench` extra. The record is records/families.jsonl, a line a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pages import DOCS, ROOT, Places, fill

sys.path.insert(0, str(ROOT))
from tests.families import FAMILIES, StoppedError, walk

RECORD = Path(__file__).parent / "records" / "families.jsonl"
Row = dict[str, Any]


def recorded() -> dict[str, Row]:
    """The rows on record, by model."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    return {row["model"]: row for row in map(json.loads, lines)}


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
    return {(DOCS / "families.md", "families"): table(recorded())}


def main() -> None:
    """Run, record and fill in the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAMILIES)
    only = parser.parse_args().only
    rows = recorded()
    for name in [only] if only else [name for name in FAMILIES if name not in rows]:
        rows[name] = taken(name)
        print(json.dumps(rows[name]), flush=True)
        RECORD.write_text("".join(json.dumps(rows[name]) + "\n" for name in FAMILIES if name in rows))
    fill(places())


if __name__ == "__main__":
    main()
