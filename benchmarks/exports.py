"""Adapters of tiny pipelines, exported and loaded by other libraries, on the way of `tests/peers/exporting.py`.

    python benchmarks/exports.py              # all of them (3 minutes), then docs/exporting.md

Needs the `bench` extra. The record is records/exports.jsonl, a line for every variant and family.
"""

from __future__ import annotations

import sys
import tempfile
from operator import itemgetter
from pathlib import Path

from pages import DOCS, ROOT, Places, fill, table
from recorded import Records, Row

sys.path.insert(0, str(ROOT))
RECORDS = Records("exports.jsonl", itemgetter("variant", "family"))
EXACT = 1e-5  # an error of rounding
NAMES = {"StableDiffusion": "SD 1.5", "StableDiffusionXL": "SDXL", "StableDiffusion3": "SD3", "Flux": "FLUX.1"}


def loaded(rows: list[Row]) -> str:
    """Markdown."""
    columns = list(rows[0]["cells"])
    heads = [f"<`{form}`, {loader}" for form, loader in (column.split() for column in columns)]
    errors = ([cell(row["cells"][column]) for column in columns] for row in rows)
    lines = ([row["variant"], NAMES[row["family"]], *cells] for row, cells in zip(rows, errors, strict=True))
    return table(["<variant", "<base", *heads], lines)


def cell(found: float | str) -> str:
    """An error as a share of ‖ΔW‖, or why there is none."""
    if isinstance(found, str):
        return found
    return "exact" if found < EXACT else f"{found:.1%}"


def places() -> Places:
    """The generated part of the docs."""
    return {(DOCS / "exporting.md", "loaded"): loaded(RECORDS.rows())}


def main() -> None:
    """Run, record and fill in the page."""
    from tests.peers.exporting import VARIANTS, cells

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            for family in NAMES:
                rows.append({"variant": variant, "family": family, "cells": cells(variant, family, Path(folder))})
                print(rows[-1], flush=True)
    RECORDS.write(rows)
    fill(places())


if __name__ == "__main__":
    main()
