"""A cache of what one run has read and the next run of the same process needs again.

Off in a process of one run; a sweep's workers switch it on. Cached objects must not be modified: runs get copies, or
only read them. An entry's key says what it depends on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Store:
    """What is kept, by kind and key, if it `keeps` anything."""

    keeps: bool = False
    kinds: dict[str, OrderedDict[Hashable, Any]] = field(default_factory=dict)


STORE = Store()


def once(kind: str, key: Hashable, make: Callable[[], T], *, most: int) -> T:
    """What `make` gives, or gave before for this kind and key. Of a kind, the `most` that were last used are kept."""
    if not STORE.keeps:
        return make()
    kept = STORE.kinds.setdefault(kind, OrderedDict())
    if key not in kept:
        while len(kept) >= most:  # before the next is made, which may be large
            kept.popitem(last=False)
        kept[key] = make()
    kept.move_to_end(key)
    found: T = kept[key]
    return found
