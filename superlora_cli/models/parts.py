"""Parts of a base that may be trained along with an adapter's factors: biases and normalisation layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from superlora_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


class Part(NamedTuple):
    """A bias or a parameter of a normalisation layer: its shape, and whether it is the latter."""

    shape: tuple[int, ...]
    norm: bool


def parts_of(model: nn.Module) -> dict[str, Part]:
    """Every bias of `model` and every parameter of its normalisation layers, by name, in model order."""
    from torch.nn.parameter import is_lazy  # here: counting does without torch

    found = {}
    for module, layer in model.named_modules():
        norm = any("norm" in kind.__name__.lower() for kind in type(layer).__mro__)  # torch's, timm's, transformers' …
        if module.partition(".")[0] == "superlora":
            continue
        for name, parameter in layer._parameters.items():
            if parameter is not None and (norm or is_bias(name)) and not is_lazy(parameter):
                found[f"{module}.{name}".lstrip(".")] = Part(tuple(parameter.shape), norm)
    return found


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias, by its name.

    >>> [is_bias(name) for name in ("head.bias", "attn.q_bias", "attn.relative_position_bias_table")]
    [True, True, False]
    """
    return name.endswith("bias")


def chosen(parts: Mapping[str, Part], also: Iterable[str], *, without: Collection[str] = ()) -> dict[str, Part]:
    """The parts that the knob `also` selects, except those in `without` (a head's).

    Raises:
        UsageError: the base has no part of a kind.

    >>> list(chosen({"norm.weight": Part((4,), True), "fc.bias": Part((4,), False)}, ["bias"]))
    ['fc.bias']
    """
    found: set[str] = set()
    for kind in also:
        own = {name for name, part in parts.items() if (part.norm if kind == "norm" else is_bias(name))} - {*without}
        if not own:
            raise UsageError(f"the base has no {kind} to train", where="adapter.also", hint="leave it out")
        found |= own
    return {name: part for name, part in parts.items() if name in found}
