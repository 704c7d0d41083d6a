"""Many stored adapters on one base, one at a time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from superlora_cli.adapter import store
from superlora_cli.adapter.attach import activate, detach
from superlora_cli.adapter.layers import stored_parameter
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.opening.attached import attach_stored

MOST = 8  # kinds of adapters that stay on the model


class Switching:
    """A base that can be given any of many adapters.

    Adapters of the same kind (knobs, targets, base and shapes) share one module on the model: to switch between them is
    to copy their numbers into it, so nothing is compiled, hashed or made again.

    Args:
        model: the base; it may hold other adapters, which stay on it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._kinds: OrderedDict[Any, tuple[str, SuperLora]] = OrderedDict()
        self._made = 0

    def use(self, stored: StoredAdapter, where: str) -> SuperLora:
        """Make an adapter the active one, with its head.

        Args:
            where: the file, for messages.

        Raises:
            MismatchError: it does not belong to this base.
        """
        kind = _kind(stored)
        if kind not in self._kinds:
            self._make_room()
            name = f"kind{self._made}"
            self._made += 1
            self._kinds[kind] = name, attach_stored(self.model, stored, where=where, name=name, other_classes=True)
            return self._kinds[kind][1]
        name, adapter = self._kinds[kind]
        self._kinds.move_to_end(kind)
        activate(self.model, name)
        store.restore(adapter, stored, where=where)
        with torch.no_grad():
            for key, tensor in stored.beside.items():
                stored_parameter(self.model, key).copy_(tensor)
        return adapter

    def _make_room(self) -> None:
        if len(self._kinds) >= MOST:
            _, (name, _) = self._kinds.popitem(last=False)
            activate(self.model, None)
            detach(self.model, name)


def _kind(stored: StoredAdapter) -> Any:
    """What adapters that can share a module have in common."""
    shapes = {name: tuple(tensor.shape) for name, tensor in (*stored.factors.items(), *stored.beside.items())}
    return stored.config, stored.targets_digest, stored.base["sha256"], stored.patterns, frozenset(shapes.items())
