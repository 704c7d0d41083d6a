"""Modules that temporarily behave differently: their class is swapped for a subclass, and nothing is copied."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

_CLASSES: dict[tuple[type[Swapped], type[nn.Module]], type[nn.Module]] = {}


class Swapped:
    """Base of the mixins for module classes: its subclasses override methods of the module."""

    _mixin: type[Swapped]
    _base_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self._mixin, self._base_class), self.__dict__


def swap(module: nn.Module, mixin: type[Swapped]) -> None:
    """Make `mixin` override the methods of the module's class."""
    module.__class__ = _swapped(mixin, type(module))


def unswap(module: nn.Module) -> None:
    """Undo `swap`."""
    module.__class__ = cast(Any, module)._base_class


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module when it is not swapped."""
    return getattr(module, "_base_class", type(module))


def _swapped(mixin: type[Swapped], base: type[nn.Module]) -> type[nn.Module]:
    """One class per pair, so that types stay comparable."""
    if (mixin, base) not in _CLASSES:
        members = {"_mixin": mixin, "_base_class": base}
        _CLASSES[mixin, base] = type(f"Adapted{base.__name__}", (mixin, base), members)
    return _CLASSES[mixin, base]


def _blank(mixin: type[Swapped], base: type[nn.Module]) -> nn.Module:
    swapped = _swapped(mixin, base)
    return swapped.__new__(swapped)
