"""The weight of an adapted layer: W + ΔW, computed when it is read. Writes to it are lost."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Shown(Tensor):
    """Behaves like any other tensor, but calls `_written` on every write."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl  # as Parameter: results are plain tensors
    _written: Callable[[], None]

    @property
    def data(self) -> Tensor:
        return show(super().data, self._written)

    @data.setter
    def data(self, value: Tensor) -> None:
        self._written()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.as_subclass(Tensor).__deepcopy__(memo)


def show(weight: Tensor, written: Callable[[], None]) -> Tensor:
    """The same tensor, calling `written` on writes; tensors of another class are returned unchanged."""
    if type(weight) is not Tensor:  # such as a fake tensor, which has only a shape
        return weight
    shown = weight.as_subclass(Shown)
    shown._written = written
    return shown


def _telling(name: str) -> Callable[..., Any]:
    def write(self: Shown, *args: Any, **kwargs: Any) -> Any:
        self._written()
        return getattr(Tensor, name)(self, *args, **kwargs)

    return write


for _name in dir(Tensor):  # copy_, mul_, requires_grad_, …; weight[...] = …; weight += …
    in_place = _name.endswith("_") and not _name.startswith("_")
    if in_place or _name == "__setitem__" or (_name.startswith("__i") and hasattr(Tensor, f"{_name[3:-2]}_")):
        setattr(Shown, _name, _telling(_name))


class Warned:
    """Warns once that writes to a shown weight are lost."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self) -> None:
        if not self._said:
            self._said = True
            message = "layer.weight is W + ΔW, computed when it is read: writes to it are lost"
            warnings.warn(f"{message} (detach(model) first)", stacklevel=3)
