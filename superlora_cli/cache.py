"""A cache for what one run reads and the next run in the same process needs again.

It is off by default; a sweep's workers switch it on. Cached objects must not be modified: runs copy them or only read
them. An entry's key contains everything it depends on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Store:
    """Cached objects by kind and key; nothing is cached unless `keeps`."""

    keeps: bool = False
    kinds: dict[str, OrderedDict[Hashable, Any]] = field(default_factory=dict)


STORE = Store()


def once(kind: str, key: Hashable, make: Callable[[], T], *, most: int) -> T:
    """The result of `make`, or the cached one for this kind and key. Per kind, the `most` recently used are cached."""
    if not STORE.keeps:
        return make()
    cached = STORE.kinds.setdefault(kind, OrderedDict())
    if key not in cached:
        while len(cached) >= most:  # before the next one is made, because it may be large
            cached.popitem(last=False)
        cached[key] = make()
    cached.move_to_end(key)
    found: T = cached[key]
    return found
