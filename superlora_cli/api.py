"""Adapters from Python, on any `nn.Module`, trained in any loop.

adapter = superlora_cli.attach(model, ["q", "v"], "lorta", rank=2, name="pets")
superlora_cli.inform(model, passes)                       # only if it starts from batches, as with init="gradient"
...                                                       # train what requires a gradient
superlora_cli.save(model, "pets.safetensors")
superlora_cli.load(model, "cars.safetensors", name="cars")
superlora_cli.activate(model, "pets")                     # or None: the plain base
superlora_cli.mixed(model, images, ["pets", "cars", …])   # each row by its own adapter
superlora_cli.detach(model, merge=True)
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.adapter import attach as adapters
from superlora_cli.adapter import informed, store
from superlora_cli.adapter.attach import DEFAULT, activate, adapters_of, detach
from superlora_cli.adapter.config import NEWEST, AdapterConfig
from superlora_cli.adapter.kinds import plain
from superlora_cli.adapter.layers import stored_parameter
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.preflight import check_on
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.models.checkpoints import digest_base
from superlora_cli.models.heads import classifier_parameters
from superlora_cli.models.parts import chosen, parts_of
from superlora_cli.models.targets import expand
from superlora_cli.opening.attached import attach_stored
from superlora_cli.opening.hub import local
from superlora_cli.recipe.describe import phrase, schema_at
from superlora_cli.recipe.schema import AdapterSection

__all__ = ["activate", "attach", "detach", "inform", "load", "mixed", "save"]


def attach(
    model: nn.Module,
    targets: str | Sequence[str] = ("q", "v"),
    method: str | None = None,
    *,
    name: str = DEFAULT,
    head: str | Sequence[str] = (),
    **knobs: Any,
) -> SuperLora:
    """Attach a new adapter with ΔW = 0 to `model` and make it the active one.

    The whole model is frozen, including its head; name the head in `head` to train it. The trained parameters are
    those that require a gradient, `[p for p in model.parameters() if p.requires_grad]`.

    Examples:
        >>> import torch, superlora_cli
        >>> model = torch.nn.Sequential(torch.nn.Linear(768, 768), torch.nn.Linear(768, 10))
        >>> adapter = superlora_cli.attach(model, ["0"], "lorta", order=3, rank=4, head="1")
        >>> adapter.plan.buckets[0].shape.sides, adapter.plan.params  # 84³ ≥ 768², 3 · 84 · 4 + 4³
        ((84, 84, 84), 1072)
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)  # and the head's 7,690
        8762

    Args:
        model: the module that is called in training; its forward computes ΔW once.
        targets: short names (q k v o mlp all-linear) or patterns over module names, as in a recipe. Short names leave
            out what `head` names.
        method: a preset (lora, lokr, lorta, dense, vera, …; see `superlora ls methods`), or None for the knobs'
            defaults. With `none` no weight is adapted, whatever the targets: only `head` and `also` are trained.
        name: the adapter's name.
        head: modules or parameters of the model, by name or glob, to train and save with this adapter.
        **knobs: the knobs of Eq. 2, ΔW_group = F(Σ_terms ⊗_k C_k ×_1 A_k1 ... ×_M A_kM), listed below. If neither
            `alpha` nor `scaling` is set, ΔW is scaled by the size of the base weights, so that AdamW with a learning
            rate of about 0.03 fits any base.

    Returns:
        The adapter, an `nn.Module`: `adapter.parameters()`, `adapter.plan.params`, `adapter.compute()` for ΔW.

    Raises:
        UsageError: a target or head matches nothing, the knobs do not fit, the name is taken, or nothing would be
            trained.

    Knobs, as in the section `adapter` of a recipe:
    """
    config = AdapterConfig.from_knobs(method, defaults=NEWEST, **knobs)
    patterns = _listed(targets, "targets") if config.adapts else ()
    own = _parameters(model, _listed(head, "head"))
    also = list(chosen(parts_of(model), config.also, without={*own, *classifier_parameters(model)}))
    if not (config.adapts or own or also):
        raise UsageError("nothing would be trained", where="method", hint="head=…, also=['bias'], or another method")
    adapter = adapters.attach(model, expand(model, patterns, without=own), config, name=name, head=own, also=also)
    adapter.patterns = patterns
    if config.reads_base:
        adapter.base_digest = store.digest_base(model, adapter.targets)
    return adapter


def inform(model: nn.Module, passes: Callable[[], object]) -> None:
    """Give the new, active adapter the start, or the positions, that some batches say: with `init: gradient` or
    `activations`, or `projection: steepest`, before its first step. ΔW stays 0.

    `model` may also be PEFT's, with superlora's plugin. With `DistributedDataParallel`, call it before wrapping the
    model, which copies the first process's adapter to all.

    Args:
        passes: runs forward and backward passes over a few batches, the same ones at every call: big models call it
            several times, for a part of the weights each. For activations, forward passes are enough.

    Examples:
        >>> import torch, superlora_cli
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> adapter = superlora_cli.attach(model, ["0"], "lora", rank=2, init="gradient")
        >>> x = torch.ones(4, 8)
        >>> superlora_cli.inform(model, lambda: model(x).square().mean().backward())

    Raises:
        UsageError: the model has no active adapter, or the adapter starts from no batches, or has started. RunError:
            there are no gradients or inputs, all are zero, or they are not finite.
    """
    model = next((each for each in model.modules() if adapters_of(each) is not None), model)
    own = adapters_of(model)
    if own is None:
        raise UsageError("the model has no adapter", hint="attach one first")
    adapter = own.get()
    if not adapter.config.informed:
        hint = "attach it with init='gradient', init='activations' or projection='steepest'"
        raise UsageError("the adapter takes nothing from batches", hint=hint)
    if adapter.is_placed if adapter.config.places else adapter.has_started:
        hint = "inform a new adapter only, before its first step"
        raise UsageError("the adapter has been informed, or loaded: it would lose what it has learned", hint=hint)
    informed.inform(model, adapter, passes)


def _with_knobs(doc: str) -> str:
    """Append all knobs to a docstring: type, default and meaning, from the schema of recipes."""
    known = {field.name: field.default for field in fields(AdapterConfig)}
    lines = []
    for name, field in AdapterSection.model_fields.items():
        if name in known:
            about = f"{name}: {phrase(schema_at(['adapter', name]))}; default {known[name]!r}. {field.description}"
            lines.append(textwrap.fill(about, 120, initial_indent=" " * 8, subsequent_indent=" " * 12))
    return doc.rstrip() + "\n\n" + "\n".join(lines) + "\n    "


attach.__doc__ = _with_knobs(attach.__doc__ or "")


def save(
    model: nn.Module, path: str | Path, *, name: str | None = None, metrics: Mapping[str, Any] | None = None
) -> None:
    """Write an adapter to one safetensors file: factors, head, knobs, targets, and a hash of the base's target weights
    (or, without targets, of all weights that are not in the file).

    Args:
        path: the file, in an existing folder; it is overwritten atomically.
        name: the adapter's name; None: the active one.
        metrics: numbers or strings to store in the file; `superlora inspect` shows them.

    Raises:
        UsageError: there is no such adapter, its layers were replaced, parameters outside it are being trained (they
            would be lost), a metric is neither a number nor text, or the file cannot be written. MismatchError: ΔW
            depends on the base's weights, and they changed since the adapter was attached. RunError: the disk is full.
    """
    held = adapters_of(model)
    if held is None:
        raise UsageError("the model has no adapter", hint="attach or load one first")
    adapter = held.get(name)
    if held.active is not None:
        check_on(model, held.get())
    active = {**held.get().head, **held.get().also} if held.active is not None else {}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and not key.startswith("superlora.") and key not in active:
            raise UsageError("is trained but would not be saved", where=key, hint="name it in attach(…, head=[…])")
    head: Mapping[str, Tensor] = adapter.head
    also: Mapping[str, Tensor] = adapter.also
    if held.active is not None and adapter is held.get():  # then their current values are in the model
        head, also = ({key: stored_parameter(model, key) for key in own} for own in (head, also))
    if not adapter.is_placed:
        raise UsageError("its positions are not chosen: nothing was trained", where=str(path), hint="train it first")
    sha256, dtype = digest = digest_base(model, adapter.targets, (*head, *also))
    if adapter.base_digest not in (None, digest):
        raise MismatchError(
            "ΔW depends on the base, whose weights changed since the adapter was attached",
            where=str(path),
            hint="load weights before attaching; detach(merge=True) keeps what was trained",
        )
    store.StoredAdapter.of(
        adapter.config,
        adapter.targets,
        dict(adapter.factors.items()),
        patterns=adapter.patterns,
        base=(_base_name(model), sha256, dtype),
        metrics=_written(metrics or {}),
        positions=adapter.positions,
        head=head,
        also=also,
    ).save(Path(path), force=True)


def load(model: nn.Module, path: str | Path, *, name: str = DEFAULT, allow_base_mismatch: bool = False) -> SuperLora:
    """Attach a saved adapter to `model`, active and trainable; the file is from `save` or from `superlora train`.

    Args:
        path: an adapter file, a run folder, or `hf-hub:USER/NAME[@REVISION]`.
        name: the adapter's name on this model.
        allow_base_mismatch: accept a base whose target weights are not bit for bit those that were adapted, unless
            ΔW depends on them (`frozen: svd`, `multiply`, `projection: largest`).

    Raises:
        UsageError: it is not an adapter file, the base cannot be adapted, or the name is taken. MismatchError: adapter
            and base do not belong together. In either case nothing has changed.
    """
    path = local(path)
    file = path / "adapter.safetensors" if path.is_dir() else path
    return attach_stored(
        model, store.load(file), where=str(file), name=name, allow_mismatch=allow_base_mismatch, other_classes=True
    )


@torch.no_grad()
def mixed(model: nn.Module, inputs: Tensor, adapter_names: Sequence[str | None]) -> list[Tensor]:
    """The output for every row of a batch, each by its own adapter: one forward pass for each adapter that is named.

    The adapter that was active is active again afterwards. There are no gradients.

    Examples:
        >>> import superlora_cli
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
        >>> for name in ("pets", "cars"):
        ...     adapter = superlora_cli.attach(model, ["0"], rank=1, name=name)
        >>> outputs = superlora_cli.mixed(model, torch.ones(3, 8), ["pets", None, "cars"])
        >>> len(outputs), outputs[0].shape
        (3, torch.Size([3]))

    Args:
        inputs: what `model` takes, (n, …).
        adapter_names: a name for each of the n rows; None is the plain base.

    Returns:
        n outputs without the dimension of the batch; of models of transformers, the logits. Their shapes differ where
        the adapters' heads do.

    Raises:
        UsageError: the model has no adapter of some name, or not one name for each row, or it does not return a row for
            each. The model is unchanged.
    """
    held = adapters_of(model)
    if held is None:
        raise UsageError("the model has no adapter", hint="attach or load one first")
    if len(adapter_names) != len(inputs):
        raise UsageError(f"{len(adapter_names)} names for {len(inputs)} rows", where="adapter_names", hint="one a row")
    for each in filter(None, adapter_names):
        held.get(each)
    rows: dict[str | None, list[int]] = {}
    for row, name in enumerate(adapter_names):
        rows.setdefault(name, []).append(row)
    before = held.active
    found: dict[int, Tensor] = {}
    try:
        for name, own in rows.items():
            activate(model, name)
            found |= zip(own, _rows(model(inputs[own]), len(own)), strict=True)
    finally:
        activate(model, before)
    return [found[row] for row in range(len(inputs))]


def _rows(output: Any, count: int) -> Tensor:
    """What a model returns for so many inputs, a row for each; of a model of transformers, its logits."""
    rows = getattr(output, "logits", output)
    if not isinstance(rows, Tensor) or not rows.ndim or len(rows) != count:
        message = f"the model returns a {type(output).__name__}, not a tensor with a row for every input"
        raise UsageError(message, where="model", hint="call it in a module that returns one")
    return rows


def _listed(words: str | Sequence[str], where: str) -> tuple[str, ...]:
    listed = (words,) if isinstance(words, str) else tuple(words) if isinstance(words, Iterable) else (words,)
    if not all(isinstance(word, str) for word in listed):
        raise UsageError(f"{words!r:.60} is not a list of names", where=where, hint='e.g. ["q", "v"]')
    return listed


def _written(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics in a form that a file can hold; tensors are refused."""
    if not isinstance(metrics, Mapping):
        raise UsageError(f"{metrics!r:.60} is not a dict", where="metrics", hint='e.g. {"accuracy": 0.9}')
    found: dict[str, Any] = plain(metrics)
    for name, value in found.items():
        try:
            json.dumps({name: value}, sort_keys=True)
        except (TypeError, ValueError):
            hint = "expected a number or text; for a tensor, its .item()"
            raise UsageError(f"is {value!r:.60}", where=f"metrics: {name}", hint=hint) from None
    return found


def _parameters(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The parameters that match names or globs of modules or parameters.

    Raises:
        UsageError: a pattern matches none.
    """
    names = [name for name, _ in model.named_parameters() if not name.startswith("superlora.")]
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name in names if any(fnmatchcase(name, p) for p in (pattern, f"{pattern}.*"))]
        if not matched:
            raise UsageError(f"'{pattern}' matches no parameter", where="head", hint="name a module, such as 'head'")
        found |= dict.fromkeys(matched)
    return list(found)


def _base_name(model: nn.Module) -> str:
    """A readable name for the base: timm's architecture, the source in transformers or diffusers, or its class."""
    architecture = getattr(model, "pretrained_cfg", None) or {}
    config = getattr(model, "config", None)
    source = getattr(config, "_name_or_path", None) or getattr(config, "name_or_path", None)
    return architecture.get("architecture") or source or type(model).__name__
