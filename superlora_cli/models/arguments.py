"""Model arguments from a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any

from superlora_cli.errors import UsageError, did_you_mean


def refuse_unknown(name: str, arguments: Iterable[str], constructor: Callable[..., Any]) -> None:
    """Refuse the first of `arguments` that `constructor` does not take, in one clear line."""
    refuse_others(name, arguments, [key for key in inspect.signature(constructor).parameters if key != "self"])


def refuse_others(name: str, arguments: Iterable[str], known: Collection[str]) -> None:
    """Refuse the first of `arguments` that is not among `known`, in one clear line."""
    for key in arguments:
        if key not in known:
            hint = did_you_mean(key, known) or f"its arguments are {', '.join(known)}"
            raise UsageError(f"{name} has no argument '{key}'", where="model.kwargs", hint=hint)
