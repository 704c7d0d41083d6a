"""Output: progress and logs go to stderr, results and the JSON object of `--json` to stdout; in a notebook, too."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superlora_cli.errors import SuperLoraError, printable
from superlora_cli.launch import speaks

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.table import Table


LARGE_ERROR = 0.05  # of an approximated ΔW, relative to its norm
ROUNDING = 1e-5  # of an exact one, in float32
ENOUGH_ENERGY = f"--energy {1 - LARGE_ERROR**2:g}"  # keeps the error below that


def stderr_console() -> Console:
    """The console for everything that is not a result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False, force_jupyter=False)


def loading(what: str = "torch and timm") -> Status:
    """Around an import that takes seconds: shows on a terminal what is being loaded."""
    return stderr_console().status(f"loading {what}")


def writing(out: Path) -> Callable[[int], None]:
    """Says on stderr how large a file will be, before it is written."""

    def tell(size: int) -> None:
        if speaks():
            sys.stderr.write(f"writing {size:,} bytes to {out}\n")

    return tell


def print_json(content: Any) -> None:
    """Print exactly one JSON object on stdout."""
    if speaks():
        sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")


def print_table(table: Table) -> None:
    """Print a result for people on stdout."""
    from rich.console import Console

    if speaks():
        Console(highlight=False, emoji=False, force_jupyter=False).print(table)


def print_pairs(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print a result as a table of names and values, which are shown verbatim (no markup)."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, title=Text(printable(title)), title_justify="left", min_width=min(len(title), 78))
    for name, value in rows:
        table.add_row(Text(printable(name)), Text(printable(value), overflow="fold"))
    print_table(table)


def loaded_by(done: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows on how a written file is used: the line that loads it, and that for its images if it has one."""
    names = {"load": "load it with", "preprocess": "see images by"}
    return [(name, done[key]) for key, name in names.items() if key in done]


def print_errors(weights: Sequence[dict[str, Any]], whole: float, hint: str, *, shown: int = 12) -> None:
    """Print the relative Frobenius error of every approximated weight, with its rank if it has one; one line where all
    are exact.

    Args:
        weights: a row per weight: `name`, `error` and possibly `rank`.
        whole: the relative error of all weights together.
        hint: how to get a smaller error, printed if the error is large.
        shown: rows of the table at most, the worst first.
    """
    from rich.table import Table
    from rich.text import Text

    most = max((row["error"] for row in weights), default=0.0)
    if most <= ROUNDING:
        if speaks():
            sys.stdout.write(f"ΔW of all {len(weights)} weights is exact: relative error at most {most:.1g}\n")
        return
    worst = sorted(weights, key=lambda row: -row["error"])[:shown] if len(weights) > shown else weights
    ranked = any("rank" in row for row in weights)
    title = f"relative error of ΔW, the worst {shown} of {len(weights)}" if len(worst) < len(weights) else None
    table = Table("weight", *(["rank"] if ranked else []), "relative error of ΔW", title=title, title_justify="left")
    for row in worst:
        table.add_row(Text(row["name"]), *([str(row.get("rank", ""))] if ranked else []), f"{row['error']:.2e}")
    table.add_row("all", *([""] if ranked else []), f"{whole:.2e}")
    print_table(table)
    if whole > LARGE_ERROR and speaks():
        sys.stderr.write(f"warning: the relative error of ΔW is {whole:.0%}: {hint}\n")


def report(error: SuperLoraError, *, as_json: bool) -> None:
    """Print an error: one clear line on stderr, or the `error` object of `--json`."""
    if as_json:
        print_json({"error": error.as_dict()})
    elif speaks() or error.process is not None:
        sys.stderr.write(f"superlora: {error}\n")
