"""Checks of a model before `attach` changes anything.

A weight can be adapted if it is a plain floating-point tensor that belongs to one layer, or to several tied layers
that all get its ΔW: then they all compute with W + ΔW, and merging changes nothing else. So can a packed weight of a
linear layer, whose output is adapted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from superlora_cli.adapter.layers import by_module, layers_of, stored_parameter
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.packed import DTYPES, PLAIN, is_packed, weight_shape
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import UsageError

WRAPPERS = (DataParallel, DistributedDataParallel)


def check(
    model: nn.Module,
    targets: Sequence[Target],
    head: Collection[str],
    own: Collection[SuperLora],
    *,
    nested: Collection[str] = (),
    shapes_only: bool = False,
) -> None:
    """Refuse a model, a target or a head that cannot be adapted.

    Args:
        own: the adapters that the model already has, which may share targets with a new one.
        nested: names of modules of the model that have their own adapters.
        shapes_only: accept weights without values, on the meta device.

    Raises:
        UsageError: names the module, and the one it conflicts with.
    """
    _check_model(model, own, nested)
    modules = dict(model.named_modules())
    pieces = by_module(targets)
    for name, indices in pieces.items():
        target, module = targets[indices[0]], modules.get(name)
        if module is None:
            raise UsageError("the model has no such module", where=target.name)
        _refuse(_weight(name), _in_peft(name, modules) or _unfit(module, shapes_only=shapes_only))
        rows, *across = weight_shape(module)
        for one in (targets[index] for index in indices):
            if (max(0, min(one.stop, rows) - one.start), *across) != one.shape:
                raise UsageError(f"the model has no weight of shape {list(one.shape)}", where=one.name)
        for first, second in pairwise(indices):
            if targets[second].start < targets[first].stop:
                raise UsageError("two targets share rows", where=f"{targets[first].name}, {targets[second].name}")
    for key in head:
        if key in map(_weight, pieces):
            raise UsageError("cannot be both adapted and trained as a head", where=key, hint="choose one")
        _refuse(key, _unfit_values(stored_parameter(model, key), shapes_only=shapes_only))
    weights = [_weight(name) for name in pieces]
    _check_devices(model, [*weights, *head])
    _check_shared(model, weights, {_weight(target.module): {*map(_weight, target.tied)} for target in targets})


def check_free(model: nn.Module, adapter: SuperLora, own: Collection[SuperLora]) -> None:
    """Refuse to put an adapter on layers that another module's adapter has taken since.

    Raises:
        UsageError: names the layer.
    """
    modules = dict(model.named_modules())
    for name in layers_of(adapter.targets):
        _refuse(_weight(name), _foreign(modules[name], own))


def check_on(model: nn.Module, adapter: SuperLora) -> None:
    """Refuse to take an adapter off layers that have been replaced.

    Raises:
        UsageError: names the layer.
    """
    modules = dict(model.named_modules())
    for name in layers_of(adapter.targets):
        if name not in modules or "_pieces" not in vars(modules[name]):
            raise UsageError("is not the layer that was adapted: it was replaced or wrapped", where=name,
                             hint="undo that first")  # fmt: skip


Problem = tuple[str, str] | None  # what is wrong, and the hint


def _refuse(where: str, problem: Problem) -> None:
    if problem is not None:
        raise UsageError(problem[0], where=where, hint=problem[1])


def _check_model(model: nn.Module, own: Collection[SuperLora], nested: Collection[str]) -> None:
    """Refuse a model in a wrapper that holds its parameters, or with adapters in another place."""
    for name, module in model.named_modules():
        if isinstance(module, WRAPPERS) or (not name and "_orig_mod" in module._modules):  # the latter: torch.compile
            hint = "attach to the module inside, then wrap it"
            raise UsageError(f"is already wrapped by {type(module).__name__}", where=name or "the model", hint=hint)
        _refuse(name, _foreign(module, own))
    for name in nested:
        raise UsageError("has its own adapters", where=name, hint="attach to it, or detach them first")
    if not own and hasattr(model, "superlora"):
        raise UsageError("the model uses this name for something else", where="model.superlora",
                         hint="rename it")  # fmt: skip


def _weight(module: str) -> str:
    return f"{module}.weight".lstrip(".")


def _foreign(module: nn.Module, own: Collection[SuperLora]) -> Problem:
    """Whether a layer is already adapted through another model or an enclosing module."""
    pieces = vars(module).get("_pieces", ())
    if all(any(adapter is one for one in own) for adapter, _ in pieces):
        return None
    return "is already adapted by an adapter of another module", "detach that one first"


def _in_peft(name: str, modules: dict[str, nn.Module]) -> Problem:
    """Whether a layer is inside a PEFT layer, which reads and merges the weight itself."""
    while name:
        name = name.rpartition(".")[0]
        if hasattr(modules[name], "adapter_layer_names"):
            return f"is in {name}, a layer that PEFT has adapted", "merge_and_unload() first"
    return None


def _unfit(module: nn.Module, *, shapes_only: bool) -> Problem:
    """Why the weight of a layer cannot be adapted; None if it can."""
    weight = module._parameters.get("weight")
    if weight is None:
        hint = "remove_parametrizations, remove_weight_norm, remove_spectral_norm or prune.remove, then attach"
        return "is computed from other tensors by a parametrization, weight norm or pruning", hint
    if is_packed(module):
        return _not_there(weight, shapes_only=shapes_only)
    if (problem := _unfit_values(weight, shapes_only=shapes_only)) is not None:
        return problem
    features = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if isinstance(module, nn.Linear) and tuple(weight.shape) != features:
        said = f"has the shape {list(weight.shape)} in a layer of {features[0]} × {features[1]}"
        return said, "load the base as its library does, or without quantisation"
    if not weight.numel():
        return f"has no elements: {list(weight.shape)}", "leave it out of the targets"
    if any(stride == 0 < size - 1 for size, stride in zip(weight.shape, weight.stride(), strict=True)):
        return "is an expanded view, whose rows or columns share memory", "give it its own memory with .clone()"
    return None


def _unfit_values(weight: Tensor, *, shapes_only: bool) -> Problem:
    """Why a tensor cannot be trained, or cannot have an update added to it; None if it can."""
    if is_lazy(weight):
        return "has no shape before the first forward pass", "run the model once, then attach"
    if hasattr(weight, "to_local"):
        return "is already sharded", "attach first, then shard"
    if weight.dtype not in DTYPES or type(weight) not in PLAIN:
        kind = str(weight.dtype).removeprefix("torch.")
        kind = kind if type(weight) in PLAIN else f"{type(weight).__name__} of {kind}"
        hint = "only floating-point weights of 16, 32 or 64 bits can be adapted, and quantised ones of linear layers"
        return f"is stored as {kind}", hint
    return _not_there(weight, shapes_only=shapes_only)


def _not_there(weight: Tensor, *, shapes_only: bool) -> Problem:
    """Why a tensor has no values that can be used; None if it has."""
    if weight.is_meta and not shapes_only:
        return "has no values yet: it is on the meta device", "load the base's weights, then attach"
    if weight.is_inference():
        return "was created under torch.inference_mode", "build and load the base outside it"
    return None


def _check_devices(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse targets on several devices: all factors are on one."""
    devices = {stored_parameter(model, name).device: name for name in reversed(names)}
    if len(devices) > 1:
        (one, first), (other, second), *_ = devices.items()
        raise UsageError(f"{first} is on {one}, {second} on {other}", where="targets", hint="one device")


def _check_shared(model: nn.Module, names: Sequence[str], tied: Mapping[str, Collection[str]]) -> None:
    """Refuse weights that share memory with another parameter or buffer: tied, or a view of it.

    Args:
        tied: weight → the tied ones, which get its ΔW too.
    """
    followers = {name for own in tied.values() for name in own}
    spans = sorted(
        _span(tensor, f"{name}.{own}".lstrip("."))
        for name, module in model.named_modules()
        for own, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None and not is_lazy(tensor) and tensor.numel()
        if f"{name}.{own}".lstrip(".") not in followers
    )
    wanted, widest = set(names), spans[0]
    for span in spans[1:]:
        overlap = span.device == widest.device and span.start < widest.end
        if overlap and not wanted.isdisjoint((widest.name, span.name)):
            one, other = (widest, span) if widest.name in wanted else (span, widest)
            hint = "untie them, or leave it out of the targets"
            raise UsageError(f"shares its values with {other.name}", where=one.name, hint=hint)
        if not overlap or span.end > widest.end:
            widest = span


class _Span(NamedTuple):
    device: str
    start: int
    end: int
    name: str


def _span(tensor: Tensor, name: str) -> _Span:
    """The memory range of a tensor; its identity if it has no memory."""
    if type(tensor) in PLAIN and not tensor.is_meta:
        with suppress(RuntimeError):  # sparse
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            return _Span(str(tensor.device), start, start + (last + 1) * tensor.element_size(), name)
    return _Span("", id(tensor), id(tensor) + 1, name)
