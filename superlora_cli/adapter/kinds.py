"""Types of knobs: numpy numbers become Python numbers, and every value is checked against its annotation."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from superlora_cli.errors import UsageError

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def settle(knobs: object, where: str) -> None:
    """Convert the values of a frozen dataclass to plain ones (lists to tuples), and check each against its annotation.

    Raises:
        UsageError: names the first value of a wrong type, below `where`.
    """
    for name, kind in _hints(type(knobs)).items():  # type: ignore[arg-type]
        value = plain(getattr(knobs, name))
        value = tuple(value) if isinstance(value, list) else value
        if not fits(value, kind):
            raise UsageError(f"{name} is {value!r:.60}", where=f"{where}.{name}", hint=words(kind))
        object.__setattr__(knobs, name, value)


def plain(value: Any) -> Any:
    """numpy numbers as Python numbers, also within lists, tuples and mappings; anything else unchanged.

    A number of lower precision becomes the decimal it is printed as: float32 0.1 is 0.1, not 0.10000000149.
    numpy is not imported: its numbers are registered as `numbers.Integral` and `numbers.Real`.
    """
    if isinstance(value, bool) or type(value) in (int, float, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):
        return float(str(value))
    if str(getattr(value, "dtype", None)) == "bool" and value.shape == ():
        return bool(value)
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(each) for each in value)
    return value


def fits(value: Any, kind: Any) -> bool:
    """Whether a plain value has the annotated type; True is not a number, and an int is also a float.

    >>> fits(2, int | Literal["full"]), fits(2.0, int | Literal["full"]), fits(("full", 4), tuple[int | str, ...])
    (True, False, True)
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(each, args[0]) for each in value)
    return type(value) in ((int, float) if kind is float else (kind,))


def words(kind: Any) -> str:
    """An annotation in words.

    >>> words(int | Literal["weight", "layer"] | None), words(tuple[int, ...])
    ('a whole number, weight or layer', 'a list: each a whole number')
    """
    *rest, last = _choices(kind)
    return f"{', '.join(rest)} or {last}" if rest else last


def _choices(kind: Any) -> list[str]:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return [one for arg in args if arg is not type(None) for one in _choices(arg)]
    if origin is Literal:
        return list(args)
    if origin is tuple:
        return [f"a list: each {words(args[0])}"]
    return [WORDS.get(kind) or "the keys " + ", ".join(field.name for field in fields(kind))]
