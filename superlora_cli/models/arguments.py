"""Model arguments from a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from superlora_cli.errors import UsageError, did_you_mean

DTYPES = ("float32", "bfloat16", "float16")  # of weights


def refuse_unknown(name: str, arguments: Iterable[str], constructor: Callable[..., Any]) -> None:
    """Refuse the first of `arguments` that `constructor` does not take, in one clear line."""
    refuse_others(name, arguments, [key for key in inspect.signature(constructor).parameters if key != "self"])


def refuse_others(name: str, arguments: Iterable[str], known: Collection[str]) -> None:
    """Refuse the first of `arguments` that is not among `known`, in one clear line."""
    for key in arguments:
        if key not in known:
            hint = did_you_mean(key, known) or f"its arguments are {', '.join(known)}"
            raise UsageError(f"{name} has no argument '{key}'", where="model.kwargs", hint=hint)


def with_dtype(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Arguments in which the dtype called `name`, if it is given, is torch's.

    Raises:
        UsageError: there is no such dtype.
    """
    import torch  # here: listing models does without

    found = dict(arguments)
    if name in found:
        if found[name] not in DTYPES:
            hint = "one of " + ", ".join(DTYPES)
            raise UsageError(f"unknown dtype {found[name]!r}", where=f"model.kwargs.{name}", hint=hint)
        found[name] = getattr(torch, found[name])
    return found
