"""Model arguments from a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from superlora_cli.errors import UsageError, did_you_mean


def refuse_unknown(name: str, arguments: Iterable[str], constructor: Callable[..., Any]) -> None:
    """Refuse the first of `arguments` that `constructor` does not take, in one clear line."""
    known = [key for key in inspect.signature(constructor).parameters if key != "self"]
    for key in arguments:
        if key not in known:
            hint = did_you_mean(key, known) or f"its arguments are {', '.join(known)}"
            raise UsageError(f"{name} has no argument '{key}'", where="model.kwargs", hint=hint)
