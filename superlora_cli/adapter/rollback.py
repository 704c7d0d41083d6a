"""Changes of a model that happen completely or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """If the block raises, every module gets back its class, children, tensors and hooks, and every parameter its
    values, gradient and `requires_grad`. Values that were overwritten in place are not restored."""
    modules = [(module, type(module), dict(vars(module))) for module in model.modules()]
    contents = [
        (held, held.copy()) for _, _, own in modules for held in own.values() if type(held) in (dict, OrderedDict)
    ]
    parameters = [(each, each.data, each.grad, each.requires_grad) for each in model.parameters()]
    try:
        yield
    except BaseException:
        for module, kind, attributes in modules:
            module.__class__ = cast(Any, kind)
            vars(module).clear()
            vars(module).update(attributes)
        for held, before in contents:  # in place: handles of hooks point to these dictionaries
            held.clear()
            held.update(before)
        for parameter, values, grad, trainable in parameters:
            parameter.data, parameter.grad, parameter.requires_grad = values, grad, trainable
        raise
