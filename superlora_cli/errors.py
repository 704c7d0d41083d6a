"""The errors that users may see. Each is one line: what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SuperLoraError(Exception):
    """Base of all errors that end a command with one line and an exit code.

    Args:
        message: what is wrong, with the numbers or names that clash.
        where: file, line, key or tensor where it is wrong.
        hint: what would be right.
    """

    code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = printable(message)
        self.where, self.hint = (None if text is None else printable(text) for text in (where, hint))
        self.process: int | None = None  # the process it happened in, unless it happened in all of them

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" ({self.hint})" if self.hint else ""
        process = "" if self.process is None else f"process {self.process}: "
        return f"{process}{place}{self.message}{advice}"

    def as_dict(self) -> dict[str, str | int | None]:
        """The `error` object of `--json`."""
        return {"code": self.code, "message": self.message, "where": self.where, "hint": self.hint}


def printable(text: str) -> str:
    """Text as one line without control characters, safe to print on a terminal.

    >>> printable("a\\nb \\x1b[2J")
    'a\\\\nb \\\\x1b[2J'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class RunError(SuperLoraError):
    """Something failed while running: NaN, a full disk. Exit code 1."""

    code = 1


class UsageError(SuperLoraError):
    """Bad usage, recipe, data or input file. Exit code 2."""

    code = 2


class LongUsageError(UsageError):
    """A usage error of several lines, such as all problems of a recipe."""

    def __init__(self, lines: Iterable[str], *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__("", where=where, hint=hint)
        self.message = "\n".join(printable(part) for line in lines for part in line.split("\n"))


class CannotResumeError(UsageError):
    """A run cannot be continued from its checkpoint, only started over."""


class FolderInUseError(UsageError):
    """Another process is writing to the folder."""


class MismatchError(SuperLoraError):
    """Adapter and base do not belong together, or a verification failed. Exit code 3."""

    code = 3


class InterruptedRunError(SuperLoraError):
    """Stopped by SIGINT or SIGTERM, after saving. Exit code 130."""

    code = 130


class PausedRunError(InterruptedRunError):
    """Stopped after saving at the step up to which it was to train."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none.

    >>> first_line(ValueError("broken\\nin many words")), first_line(EOFError())
    ('broken', 'EOFError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The hint for a misspelt name; None if no known name is similar.

    >>> did_you_mean("ordr", ["rank", "order"]), did_you_mean("adamw", ["Adam", "AdamW"])
    ("did you mean 'order'?", "did you mean 'AdamW'?")
    >>> did_you_mean("peft", ["timm", "peft-lora", "peft-oft"])  # the first that begins with it
    "did you mean 'peft-lora'?"
    """
    names = {name.lower(): name for name in known}
    longer = [name for name in names if len(word) > 2 and name.startswith(word.lower())]
    near = longer[:1] or difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5)
    return f"did you mean '{names[near[0]]}'?" if near else None
