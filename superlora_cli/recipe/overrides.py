"""KEY=VALUE on the command line: a dotted path into the recipe, and a value in YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superlora_cli.errors import UsageError
from superlora_cli.recipe.places import Places
from superlora_cli.recipe.yaml import parse_yaml


@dataclass(frozen=True)
class Override:
    """`adapter.rank=2`: its path, its value, and the text as typed."""

    path: tuple[str, ...]
    value: Any
    text: str


def parse_overrides(texts: Sequence[str]) -> list[Override]:
    """Each KEY=VALUE split at the first `=`, the value read as YAML.

    Raises:
        UsageError: a text has no `=`, a part of the key is empty, or the value is not YAML.

    >>> [(o.path, o.value) for o in parse_overrides(["train.optimizer.lr=1e-3", "adapter.targets=[q, v]"])]
    [(('train', 'optimizer', 'lr'), 0.001), (('adapter', 'targets'), ['q', 'v'])]
    """
    overrides = []
    for text in texts:
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(part and part.isprintable() for part in path):
            raise UsageError("expected KEY=VALUE", where=repr(text)[1:-1], hint="e.g. adapter.rank=2")
        where = text if text.isprintable() else repr(text)[1:-1]
        overrides.append(Override(path, _read(value, where), where))
    return overrides


def apply_overrides(data: dict[str, Any], overrides: Sequence[Override], places: Places) -> None:
    """Set each override in `data`, creating missing sections, and record it in `places`. Changes both in place.

    In a list, an index replaces that item, and the index after the last appends one.

    Raises:
        UsageError: a path leads through a value that has no keys, or past the end of a list.
    """
    for override in overrides:
        here: Any = data
        for depth, part in enumerate(override.path, start=1):
            last = depth == len(override.path)
            key = _key(here, part, override, depth)
            if isinstance(key, int) and key == len(here):
                here.append(None)
            if last:
                here[key] = override.value
            elif (here[key] if isinstance(key, int) else here.get(key)) is None:
                here[key] = {}
                places.override(".".join(override.path[:depth]), override.text)
            here = here[key]
        places.override(".".join(override.path), override.text)


def _read(value: str, where: str) -> Any:
    return parse_yaml(value, lambda line, column: where).data


def _key(here: Any, part: str, override: Override, depth: int) -> str | int:
    """`part` as a key or index of `here`."""
    if isinstance(here, dict):
        return part
    above = ".".join(override.path[: depth - 1])
    if not isinstance(here, list):
        rest = "".join(f"{{{name}: " for name in override.path[depth - 1 :])
        hint = f"{above}={rest}…{'}' * (len(override.path) - depth + 1)}"
        raise UsageError(f"{above} is {repr(here)[:40]}, which has no keys", where=override.text, hint=hint)
    if not (part.isascii() and part.isdecimal()) or len(part) > 6:
        raise UsageError(f"{above} is a list, and '{part}' is not an index", where=override.text)
    if int(part) > len(here):
        raise UsageError(f"index {part} is out of range: {above} has {len(here)} items", where=override.text)
    return int(part)


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key.

    >>> flat({"train": {"steps": 5, "optimizer": {"lr": 0.1}}})
    {'train.steps': 5, 'train.optimizer.lr': 0.1}
    """
    if not isinstance(data, Mapping):
        return {prefix: data}
    return {k: v for key, value in data.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}
