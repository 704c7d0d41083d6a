"""The classifier of a model: one head, or several, such as one per token in distilled models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from superlora_cli.errors import UsageError


def classifiers(model: nn.Module) -> dict[str, nn.Module]:
    """The classifier's modules by name, in model order; {} if there are none.

    They come from `get_classifier` and from timm's configuration, which may name more (VOLO's `aux_head`).
    """
    modules = dict(model.named_modules())
    given: Any = model.get_classifier() if hasattr(model, "get_classifier") else ()  # type: ignore[operator]
    named: Any = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = list(given) if isinstance(given, tuple | list) else [given]
    heads += [modules.get(name) for name in ([named] if isinstance(named, str) else named)]
    inside = {module for head in heads if head is not None for module in head.modules()}
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if module in inside and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def classifier_parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of the classifier's parameters; () if there are none."""
    return tuple(f"{name}.{own}" for name, module in classifiers(model).items() for own, _ in module.named_parameters())


def classifier_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The classifier's parameters and running statistics by name."""
    found = classifiers(model).items()
    return {f"{name}.{own}": tensor for name, module in found for own, tensor in module.state_dict().items()}


def classes_told_apart(head: Mapping[str, Tensor]) -> int | None:
    """The number of classes by a head's parameters, None without any; layers before the last give what others take.

    >>> import torch
    >>> layers = {"dense.weight": torch.ones(8, 8), "out.weight": torch.ones(3, 8), "out.bias": torch.ones(3)}
    >>> classes_told_apart(layers), classes_told_apart({"bias": torch.ones(5)})
    (3, 5)
    """
    weights = [tensor for tensor in head.values() if tensor.dim() > 1]
    given = [len(weight) for weight in weights]
    last = [count for count in given if count not in {weight.shape[1] for weight in weights}]
    return next(iter([*last, *given, *(len(tensor) for tensor in head.values() if tensor.dim())]), None)


def new_head(model: nn.Module, name: str) -> tuple[str, ...]:
    """Names of the parameters of a new head.

    Raises:
        UsageError: the model has no head.
    """
    found = classifier_parameters(model)
    if not found:
        hint = "use a classification model: superlora ls models"
        raise UsageError(f"{name} has no classifier to replace by a new head", where="model.head", hint=hint)
    return found


def select_rows(model: nn.Module, rows: list[int]) -> None:
    """Replace every head by some of its `rows`, in that order: (1000, d) → (len(rows), d).

    Raises:
        UsageError: a head is not a linear layer with that many rows.
    """
    heads = classifiers(model)
    for name, head in heads.items():
        if not isinstance(head, nn.Linear) or max(rows) >= head.out_features or min(rows) < 0:
            size = getattr(head, "out_features", None)
            raise UsageError(f"rows {rows} of a classifier with {size}", where="model.head.select")
        chosen = nn.Linear(head.in_features, len(rows), bias=head.bias is not None, device="meta")
        chosen.weight = nn.Parameter(head.weight.detach()[rows].clone())
        if head.bias is not None:
            chosen.bias = nn.Parameter(head.bias.detach()[rows].clone())
        model.set_submodule(name, chosen)
    if not heads:
        raise UsageError("the model has no classifier", where="model.head.select")
    model.num_classes = len(rows)  # type: ignore[assignment]
