"""Prompts from the command line and from files, for images and for texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from superlora_cli.errors import UsageError


def read_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of the command line, then the lines of a file that are not empty.

    Raises:
        UsageError: there are none, or the file cannot be read.
    """
    lines: list[str] = []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise UsageError(
                f"cannot be read: {cause}", where=str(file), hint="a text with one prompt per line"
            ) from None
    found = [*prompts, *filter(None, lines)]
    if not found:
        raise UsageError("no prompt is given", where="--prompt", hint='--prompt "a red seven", or --prompts FILE')
    return found
