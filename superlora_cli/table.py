"""Tables of what recipes and commands can name: cores, projections, tasks, kinds of data, file formats.

Each has one table, from a name to the object that does the work. Installed packages add to them by an entry point of
the group `superlora`: a module that calls `add` when imported. These modules are imported the first time a name is not
found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Generic, TypeVar

from superlora_cli.errors import UsageError, did_you_mean

GROUP = "superlora"
T = TypeVar("T")


class Later(Generic[T]):
    """An entry that is created when it is first looked up, because importing it takes time."""

    def __init__(self, load: Callable[[], T]) -> None:
        self.load = load


class Table(Mapping[str, T]):
    """Objects by name, in the order in which they were added.

    Args:
        kind: what they are, in the singular, for error messages: "core".
        own: the entries that are part of superlora.

    >>> table = Table("core", {"dense": 1})
    >>> table.add("sparse", 2)
    >>> table["sparse"], list(table)
    (2, ['dense', 'sparse'])
    """

    def __init__(self, kind: str, own: Mapping[str, T | Later[T]]) -> None:
        self.kind, self._entries = kind, dict(own)

    def add(self, name: str, entry: T) -> None:
        """Add an entry under a new name.

        Raises:
            UsageError: the name is taken.
        """
        if name in self._entries:
            raise UsageError(f"there already is a {self.kind} '{name}'", hint="choose another name")
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Undo `add`."""
        del self._entries[name]

    def named(self, name: str, *, where: str | None = None) -> T:
        """The entry with a name.

        Args:
            where: the key or option that gives the name.

        Raises:
            UsageError: there is none; the hint suggests a similar name.
        """
        if name not in self:
            hint = did_you_mean(name, self) or "one of " + ", ".join(self)
            raise UsageError(f"unknown {self.kind} '{name}'", where=where, hint=hint)
        return self[name]

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            load_extensions()
        entry = self._entries[name]
        if isinstance(entry, Later):
            entry = self._entries[name] = entry.load()
        return entry

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_extensions()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@cache
def load_extensions() -> None:
    """Import, once, the modules that installed packages declare as entry points of the group `superlora`."""
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        point.load()
