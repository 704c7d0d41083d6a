"""Where words go: progress and logs to stderr, the one JSON object of `--json` to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from superlora_cli.errors import SuperLoraError
from superlora_cli.launch import speaks

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def stderr_console() -> Console:
    """The console of everything that is not a result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(content: Any) -> None:
    """Exactly one JSON object on stdout."""
    if speaks():
        sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")


def print_table(table: Table) -> None:
    """A result for people, on stdout."""
    from rich.console import Console

    if speaks():
        Console(highlight=False).print(table)


def print_pairs(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """A result as a table of names and values, taken as they are (no markup)."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, title=Text(title), title_justify="left", min_width=min(len(title), 78))
    for name, value in rows:
        table.add_row(Text(name), Text(value, overflow="fold"))
    print_table(table)


def report(error: SuperLoraError, *, as_json: bool) -> None:
    """One clear line on stderr, or the `error` object of `--json`."""
    if as_json:
        print_json({"error": error.as_dict()})
    elif speaks() or error.process is not None:
        sys.stderr.write(f"superlora: {error}\n")
