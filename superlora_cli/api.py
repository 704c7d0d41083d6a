"""Adapters from Python, on any `nn.Module`, trained by any loop.

adapter = superlora_cli.attach(model, ["q", "v"], "lorta", rank=2, name="pets")
...                                                       # train what requires a gradient
superlora_cli.save(model, "pets.safetensors")
superlora_cli.load(model, "cars.safetensors", name="cars")
superlora_cli.activate(model, "pets")                     # or None: the plain base
superlora_cli.detach(model, merge=True)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from superlora_cli.adapter import attach as adapters
from superlora_cli.adapter import store
from superlora_cli.adapter.attach import DEFAULT, activate, detach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.kinds import plain
from superlora_cli.adapter.layers import stored_parameter
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.rollback import all_or_nothing
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.models.targets import expand

__all__ = ["activate", "attach", "detach", "load", "save"]


def attach(
    model: nn.Module,
    targets: str | Sequence[str] = ("q", "v"),
    method: str | None = None,
    *,
    name: str = DEFAULT,
    head: str | Sequence[str] = (),
    **knobs: Any,
) -> SuperLora:
    """Freeze `model` and put a new adapter with ΔW = 0 on it, active beside any others that it has.

    Args:
        model: what is called in training; its forward makes ΔW once.
        targets: short names (q k v o mlp all-linear) or patterns over module names, as in a recipe.
        method: a preset (lora, lokr, lorta, dense, vera, … as `superlora ls methods` has them), or None for the knobs'
            defaults.
        name: of the adapter.
        head: modules or parameters of the model, by name or glob, that are trained and saved with this adapter.
        **knobs: groups, order, rank, fold, splits, projection, ratio, alpha, seed, … as in a recipe.

    Returns:
        The adapter, an `nn.Module`: `adapter.parameters()`, `adapter.plan.params`, `adapter.compute()` for ΔW.

    Raises:
        UsageError: a target or head that matches nothing, knobs that do not fit, or a name that is taken.
    """
    patterns, trained = _listed(targets, "targets"), _parameters(model, _listed(head, "head"))
    config = AdapterConfig.from_knobs(method, **knobs)
    adapter = adapters.attach(model, expand(model, patterns), config, name=name, head=trained)
    _remember(model, adapter, patterns)
    return adapter


def save(
    model: nn.Module, path: str | Path, *, name: str | None = None, metrics: Mapping[str, Any] | None = None
) -> None:
    """Write an adapter to one safetensors file: factors, head, knobs, targets, and a hash of the base's target weights.

    Args:
        path: of the file, in a folder that exists; overwritten, whole or not at all.
        name: of the adapter; the active one if None.
        metrics: numbers or strings to keep in the file; `superlora inspect` shows them.

    Raises:
        UsageError: no such adapter, parameters outside of it are being trained (they would be lost), a metric that
            is neither number nor text, or the file cannot be written. MismatchError: with `frozen: svd`, the base's
            weights are not those that the adapter was attached to. RunError: the disk is full.
    """
    held = adapters.adapters_of(model)
    if held is None:
        raise UsageError("the model has no adapter", hint="attach or load one first")
    adapter = held.get(name)
    active = held.named[held.active].head if held.active is not None else {}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and not key.startswith("superlora.") and key not in active:
            raise UsageError("is trained, and would not be saved", where=key, hint="attach(…, head=[…]) names it")
    if held.active is not None and adapter is held.named[held.active]:
        head: dict[str, Tensor] = {key: stored_parameter(model, key) for key in adapter.head}
    else:
        head = adapter.head
    sha256, dtype = digest = store.digest_base(model, adapter.targets)
    if adapter.base_digest not in (None, digest):
        raise MismatchError(
            "the base is not the one that the frozen factors were taken from: its weights have changed since",
            where=str(path),
            hint="attach after they are loaded; detach(merge=True) keeps what was trained",
        )
    store.StoredAdapter(
        config=adapter.config,
        patterns=adapter.patterns,
        targets_digest=store.digest_targets(adapter.targets),
        base={"name": _base_name(model), "sha256": sha256, "dtype": dtype},
        recipe={},
        metrics=_written(metrics or {}),
        factors=dict(adapter.factors.items()),
        head=head,
    ).save(Path(path))


def load(model: nn.Module, path: str | Path, *, name: str = DEFAULT, allow_base_mismatch: bool = False) -> SuperLora:
    """Put a saved adapter on `model`, active and trainable: a file of `save`, or of `superlora train`.

    Args:
        path: an adapter file, or a run's folder.
        name: what it is called on this model.
        allow_base_mismatch: accept a base whose target weights are not bit for bit those that were adapted, unless
            frozen factors come from it.

    Raises:
        UsageError: not an adapter file, or a name that is taken. MismatchError: adapter and base do not belong
            together. Nothing has been changed then.
    """
    path = Path(path)
    file = path / "adapter.safetensors" if path.is_dir() else path
    stored, where = store.load(file), str(file)
    targets = expand(model, stored.patterns)
    store.check_targets(targets, stored, where=where)
    store.check_factors(plan(stored.config, [target.flat for target in targets]), stored, where=where)
    store.check_base(model, targets, stored, where=where, allow_mismatch=allow_base_mismatch)
    known = dict(model.named_parameters())
    for key, tensor in stored.head.items():
        if key not in known or known[key].shape[1:] != tensor.shape[1:]:  # another number of classes is fine
            raise MismatchError(f"the base has no {key} like {list(tensor.shape)}", where=where, hint="another head")
    with all_or_nothing(model):
        adapter = adapters.attach(model, targets, stored.config, name=name, head=list(stored.head))
        _remember(model, adapter, stored.patterns)
        store.restore(adapter, stored, where=where)
        for key, tensor in stored.head.items():
            parameter = stored_parameter(model, key)
            parameter.data = tensor.to(parameter)
    return adapter


def _remember(model: nn.Module, adapter: SuperLora, patterns: tuple[str, ...]) -> None:
    """What `save` writes down that is known now: the patterns, and the base that frozen factors come from."""
    adapter.patterns = patterns
    if adapter.config.frozen == "svd":
        adapter.base_digest = store.digest_base(model, adapter.targets)


def _listed(words: str | Sequence[str], where: str) -> tuple[str, ...]:
    listed = (words,) if isinstance(words, str) else tuple(words) if isinstance(words, Iterable) else (words,)
    if not all(isinstance(word, str) for word in listed):
        raise UsageError(f"{words!r:.60} is no list of names", where=where, hint='as ["q", "v"]')
    return listed


def _written(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as a file can hold them; a tensor cannot be told from one that was meant to be a number."""
    if not isinstance(metrics, Mapping):
        raise UsageError(f"{metrics!r:.60} has no names", where="metrics", hint='as {"accuracy": 0.9}')
    found: dict[str, Any] = plain(metrics)
    for name, value in found.items():
        try:
            json.dumps({name: value}, sort_keys=True)
        except (TypeError, ValueError):
            hint = "a number or text; of a tensor, its .item()"
            raise UsageError(f"is {value!r:.60}", where=f"metrics: {name}", hint=hint) from None
    return found


def _parameters(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The parameters that names or globs of modules or parameters stand for.

    Raises:
        UsageError: one stands for none.
    """
    names = [name for name, _ in model.named_parameters() if not name.startswith("superlora.")]
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name in names if any(fnmatchcase(name, p) for p in (pattern, f"{pattern}.*"))]
        if not matched:
            raise UsageError(f"'{pattern}' matches no parameter", where="head", hint="a module, like 'head'")
        found |= dict.fromkeys(matched)
    return list(found)


def _base_name(model: nn.Module) -> str:
    """What a person would call the base: timm's architecture, transformers' or diffusers' source, or its class."""
    architecture = getattr(model, "pretrained_cfg", None) or {}
    config = getattr(model, "config", None)
    source = getattr(config, "_name_or_path", None) or getattr(config, "name_or_path", None)
    return architecture.get("architecture") or source or type(model).__name__
