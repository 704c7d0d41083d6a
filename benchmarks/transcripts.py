"""The commands whose output the documentation shows, run one after another, and their output.

    python benchmarks/transcripts.py             # all of them, quarter of an hour on two CPU cores
    python benchmarks/transcripts.py --fill      # the pages again, from the record

They run in an empty folder, each using the files of those before it. Their output is in records/transcripts.jsonl;
of a long table the pages show the beginning and the end.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import pages
from recorded import Records

RECORDS = Records("transcripts.jsonl", itemgetter("command"))
README, EXPORTING, SWEEPS = pages.ROOT / "README.md", pages.DOCS / "exporting.md", pages.DOCS / "sweeps.md"
WIDTH = 110
LONGEST, BEGINNING = 8, 2  # rows of a table that are all shown, and how many of a longer one before its last


class Transcript(NamedTuple):
    """A command line, and the place of a page that shows its output; without one it only prepares others."""

    command: str
    page: Path | None = None
    place: str = ""


EXTRACT = "superlora extract --tuned tuned.safetensors --base glyphs_vit --method lora --rank 2 --out half.safetensors"
COMBINE = "superlora combine runs/digits_lora runs/quickstart --weights 0.5,0.5 --out mean.safetensors"
TRANSCRIPTS = [
    Transcript("superlora train quickstart --quiet", README, "quickstart"),
    Transcript("superlora train digits_lora --quiet"),
    Transcript("superlora export runs/quickstart --to peft-lora --rank 16 --out quickstart-lora", EXPORTING, "export"),
    Transcript(COMBINE, EXPORTING, "combine"),
    Transcript("superlora merge runs/digits_lora --out tuned.safetensors --json"),
    Transcript(EXTRACT, EXPORTING, "extract"),
    Transcript("superlora eval half.safetensors data.name=digits", EXPORTING, "extracted"),
    Transcript("superlora inspect runs/digits_lora --norms", EXPORTING, "norms"),
    Transcript("superlora sweep sweep.yaml --dry-run", SWEEPS, "dry run"),
    Transcript("superlora sweep sweep.yaml --workers 2", SWEEPS, "sweep"),
]


def run(command: str, folder: Path) -> str:
    """The output of a command on both streams, in order.

    Raises:
        SystemExit: it failed.
    """
    words = [sys.executable, "-m", "superlora_cli", *shlex.split(command)[1:]]
    environment = os.environ | {"COLUMNS": str(WIDTH), "OMP_NUM_THREADS": "2"}
    told = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if told.returncode:
        raise SystemExit(f"{command}\n{told.stdout}")
    lines = told.stdout.strip("\n").splitlines()
    return "\n".join(anywhere(line.rstrip(), {str(folder): ".", str(pages.ROOT): "superlora"}) for line in lines)


def anywhere(line: str, names: Mapping[str, str]) -> str:
    """A line of output with the folders of this machine renamed, padded to the same width inside a box.

    >>> anywhere("│ /home/me/a │", {"/home/me": "x"})
    '│ x/a        │'
    """
    for path, name in names.items():
        lost = len(path) - len(name)
        while path in line:
            line = line.replace(path, name, 1)
            if line.endswith("│"):
                line = f"{line[:-1]}{' ' * lost}│"
    return line


def shortened(said: str) -> str:
    """Without the middle rows of long tables.

    >>> print(shortened("\\n".join(["┃ n ┃", *(f"│ {n} │" for n in range(9)), "└───┘"])))
    ┃ n ┃
    │ 0 │
    │ 1 │
    …
    │ 8 │
    └───┘
    """
    shown: list[str] = []
    for rows in re.split(r"^((?:│.*\n)+)", said + "\n", flags=re.M):
        lines = rows.splitlines()
        long = rows.startswith("│") and len(lines) > LONGEST
        shown += [*lines[:BEGINNING], "…", lines[-1]] if long else lines
    return "\n".join(shown)


def block(transcript: Transcript, said: str) -> str:
    """The form that a page shows."""
    return f"```text\n$ {transcript.command}\n{shortened(said)}\n```"


def places() -> pages.Places:
    """The generated parts of the pages."""
    known = RECORDS.known()
    return {(t.page, t.place): block(t, known[t.command]["said"]) for t in TRANSCRIPTS if t.page and t.command in known}


def sweep_of_the_page() -> str:
    """The sweep file at the beginning of docs/sweeps.md."""
    found = re.search(r"```yaml\n(.*?)```", SWEEPS.read_text(encoding="utf-8"), flags=re.S)
    assert found
    return found[1]


def main() -> None:
    """Run, record, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fill", action="store_true", help="fill the pages, and run nothing")
    if not parser.parse_args().fill:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "sweep.yaml").write_text(sweep_of_the_page(), encoding="utf-8")
            rows = []
            for transcript in TRANSCRIPTS:
                rows.append({"command": transcript.command, "said": run(transcript.command, Path(folder))})
                print(f"$ {transcript.command}\n{rows[-1]['said']}", flush=True)
        RECORDS.write(rows)
    pages.fill(places())


if __name__ == "__main__":
    main()
