"""Adapters of tiny pipelines, exported and loaded by other libraries, on the way of `tests/peers/exporting.py`.

    python benchmarks/exports.py              # all of them (3 minutes), then docs/exporting.md

Needs the `bench` extra. The record is records/exports.jsonl, a line for every variant and family.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pages import DOCS, ROOT, Places, fill

sys.path.insert(0, str(ROOT))
RECORD = Path(__file__).parent / "records" / "exports.jsonl"
EXACT = 1e-5  # an error of rounding
NAMES = {"StableDiffusion": "SD 1.5", "StableDiffusionXL": "SDXL", "StableDiffusion3": "SD3", "Flux": "FLUX.1"}
Row = dict[str, Any]


def recorded() -> list[Row]:
    """The rows on record."""
    return [json.loads(line) for line in RECORD.read_text().splitlines()]


def table(rows: list[Row]) -> str:
    """Markdown."""
    columns = list(rows[0]["cells"])
    heads = [f"`{form}`, {loader}" for form, loader in (column.split() for column in columns)]
    lines = [f"| {' | '.join(['variant', 'base', *heads])} |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        cells = [cell(row["cells"][column]) for column in columns]
        lines.append(f"| {' | '.join([row['variant'], NAMES[row['family']], *cells])} |")
    return "\n".join(lines)


def cell(found: float | str) -> str:
    """An error as a share of ‖ΔW‖, or why there is none."""
    if isinstance(found, str):
        return found
    return "exact" if found < EXACT else f"{found:.1%}"


def places() -> Places:
    """The generated part of the docs."""
    return {(DOCS / "exporting.md", "loaded"): table(recorded())}


def main() -> None:
    """Run, record and fill in the page."""
    from tests.peers.exporting import VARIANTS, cells

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            for family in NAMES:
                row = {"variant": variant, "family": family, "cells": cells(variant, family, Path(folder))}
                lines.append(json.dumps(row, ensure_ascii=False))
                print(lines[-1], flush=True)
    RECORD.write_text("".join(line + "\n" for line in lines))
    fill(places())


if __name__ == "__main__":
    main()
