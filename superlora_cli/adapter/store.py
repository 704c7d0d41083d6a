"""Adapter files: the factors, a trained head, and metadata that identifies their base.

The header has only strings, in sorted order and without times, paths or throughput, so that equal adapters are equal
bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.adapter.attach import SuperLora
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.prng import GENERATOR
from superlora_cli.adapter.shapes import Plan
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.files import write_atomic
from superlora_cli.kinds import ADAPTER_MARK, MODEL_MARK, Kind
from superlora_cli.weights import checksum
from superlora_cli.weights.foreign import recognise
from superlora_cli.weights.small import read_safetensors, safetensors_bytes

FORMAT_VERSIONS = ("1", "2")  # 2: no factors, or `also` tensors
HEAD, ALSO = "head.", "also."
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class StoredAdapter:
    """The content of an adapter file.

    Attributes:
        config: the knobs.
        patterns: the target patterns, as in the recipe.
        targets_digest: SHA-256 over the expanded names, shapes and slices.
        base: `name`, `sha256` and `dtype` of the base's target slices.
        recipe: the whole recipe, as plain data.
        metrics: final metrics of the run.
        factors: the trained tensors by name.
        head: trained tensors outside the adapter, by their name in the model.
        also: the same for the tensors that the knob `also` trains.
        classes: names of the model's output classes, in order; () if they are just numbered.
        origin: for an adapter not trained by a run: its source, and the relative error of every target.
    """

    config: AdapterConfig
    patterns: tuple[str, ...]
    targets_digest: str
    base: Mapping[str, str]
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]
    factors: Mapping[str, Tensor]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    also: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: AdapterConfig,
        targets: Sequence[Target],
        factors: Mapping[str, Tensor],
        *,
        patterns: Sequence[str],
        base: tuple[str, str, str],
        recipe: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        **beside: Any,
    ) -> StoredAdapter:
        """An adapter to be written.

        Args:
            base: its name, the SHA-256 of its target slices, and their dtype.
            **beside: head, also, classes, origin.
        """
        named = dict(zip(("name", "sha256", "dtype"), base, strict=True))
        return cls(
            config,
            tuple(patterns),
            digest_targets(targets),
            named,
            recipe or {},
            metrics or {},
            dict(factors),
            **beside,
        )

    @property
    def beside(self) -> dict[str, Tensor]:
        """All tensors that replace those of the base, by their name in the model: the head and `also`."""
        return {**self.head, **self.also}

    def to_bytes(self) -> bytes:
        """The file in canonical form."""
        tensors = {name: tensor.detach().cpu() for name, tensor in self.factors.items()}
        for prefix, own in ((HEAD, self.head), (ALSO, self.also)):
            tensors |= {prefix + name: tensor.detach().cpu() for name, tensor in own.items()}
        metadata = {
            "format": "pt",
            ADAPTER_MARK: self.config.format_version,
            "superlora.config": self.config.to_json(),
            "superlora.targets": _json({"patterns": list(self.patterns), "sha256": self.targets_digest}),
            "superlora.base": _json(self.base),
            "superlora.prng": GENERATOR,
            "superlora.recipe": _json(self.recipe),
            "superlora.metrics": _json(self.metrics),
            **classes_metadata(self.classes),
            **({"superlora.origin": _json(self.origin)} if self.origin else {}),
        }
        return safetensors_bytes(tensors, checksum.with_checksum(tensors, metadata))

    def save(self, path: Path, *, force: bool = True) -> None:
        """Write the file completely or not at all; raises as `write_atomic`."""
        write_atomic(path, self.to_bytes(), force=force)


def load(path: Path) -> StoredAdapter:
    """Read and check an adapter file.

    Raises:
        UsageError: the file is missing, truncated, modified, not a superlora adapter, or of a newer format.
    """
    tensors, metadata = read_safetensors(path)
    if ADAPTER_MARK not in metadata:
        what, hint = recognise(tensors, metadata) or ("", "an adapter.safetensors that superlora train wrote")
        what = what or (Kind.MODEL if MODEL_MARK in metadata else Kind.WEIGHTS)
        message = f"{what}, not a superlora adapter"
        raise UsageError(message, where=str(path), hint=hint)
    if metadata[ADAPTER_MARK] not in FORMAT_VERSIONS:
        version = metadata[ADAPTER_MARK]
        raise UsageError(f"adapter format {version}, but this version reads {' and '.join(FORMAT_VERSIONS)}",
                         where=str(path), hint="update superlora")  # fmt: skip
    checksum.check(tensors, metadata, path)
    for name, tensor in tensors.items():
        _check_numbers(name, tensor, path)
    try:
        targets, base = _said(metadata, "targets"), _said(metadata, "base")
        return StoredAdapter(
            config=AdapterConfig.from_json(metadata["superlora.config"]),
            patterns=tuple(_text(pattern) for pattern in targets["patterns"]),
            targets_digest=_text(targets["sha256"]),
            base={"name": base["name"], **{key: _text(base[key]) for key in ("sha256", "dtype")}},
            recipe=_said(metadata, "recipe"),
            metrics=_said(metadata, "metrics"),
            factors={name: t for name, t in tensors.items() if not name.startswith((HEAD, ALSO))},
            head={name.removeprefix(HEAD): t for name, t in tensors.items() if name.startswith(HEAD)},
            also={name.removeprefix(ALSO): t for name, t in tensors.items() if name.startswith(ALSO)},
            classes=read_classes(metadata),
            origin=_said({"superlora.origin": "{}", **metadata}, "origin"),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"damaged metadata: {error}", where=str(path), hint="copy or train it again") from None


def _said(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    found = json.loads(metadata[f"superlora.{name}"])
    if not isinstance(found, dict):
        raise TypeError(f"{name} is {found!r:.40}, but should be an object")
    return found


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise TypeError(f"{found!r:.40} should be text")
    return found


def _check_numbers(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse a tensor that training cannot produce."""
    if tensor.dtype not in DTYPES:
        raise UsageError(
            f"tensor {name} has dtype {tensor.dtype}", where=str(path), hint="expected floating-point numbers"
        )
    if not torch.isfinite(tensor).all():
        raise UsageError(f"tensor {name} holds NaN or Inf", where=str(path), hint="train again at a lower rate")


def classes_metadata(names: Sequence[str]) -> dict[str, str]:
    """The header entry for class names, {} if they are just the numbers 0, 1, …"""
    numbered = list(names) == [str(number) for number in range(len(names))]
    return {} if numbered else {"superlora.classes": json.dumps(list(names), ensure_ascii=False)}


def read_classes(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Class names from a header, () if it has none.

    Raises:
        ValueError, TypeError: the entry is not a list of strings.
    """
    return tuple(_text(name) for name in json.loads(metadata.get("superlora.classes", "[]")))


def restore(adapter: SuperLora, stored: StoredAdapter, *, where: str) -> None:
    """Copy stored factors into an attached adapter.

    Raises:
        MismatchError: the patterns select other targets on this base than were trained.
    """
    check_targets(adapter.targets, stored, where=where)
    check_factors(adapter.plan, stored, where=where)
    with torch.no_grad():
        for name, tensor in stored.factors.items():
            adapter.factors[name].copy_(tensor)


def check_beside(model: nn.Module, stored: StoredAdapter, *, where: str, other_classes: bool = False) -> None:
    """Refuse head or `also` tensors that do not fit the model.

    Args:
        other_classes: accept a head for another number of classes.

    Raises:
        MismatchError: names the first parameter.
    """
    own = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, tensor in stored.beside.items():
        first = 1 if other_classes and name in stored.head else 0
        if name not in own or own[name][first:] != tensor.shape[first:]:
            hint = "another head" if name in stored.head else "another base"
            raise MismatchError(f"the base has no {name} of shape {list(tensor.shape)}", where=where, hint=hint)


def check_targets(targets: Sequence[Target], stored: StoredAdapter, *, where: str) -> None:
    """Refuse targets that differ from the adapted ones in name, rows or shape.

    Raises:
        MismatchError: names the base that the adapter was trained on.
    """
    if digest_targets(targets) != stored.targets_digest:
        raise MismatchError("the adapter's targets do not match this base", where=where,
                            hint=f"it was trained on {stored.base.get('name')}")  # fmt: skip


def check_factors(plan: Plan, stored: StoredAdapter, *, where: str) -> None:
    """Refuse stored factors whose shapes do not follow from the knobs on these targets.

    Raises:
        MismatchError: names the first.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.factors.items()}
    if shapes != plan.tensors:
        wrong = sorted(set(shapes.items()) ^ set(plan.tensors.items()))[0]
        raise MismatchError(f"tensor {wrong[0]} of shape {list(wrong[1])} does not fit the knobs", where=where)


def digest_targets(targets: Sequence[Target]) -> str:
    """SHA-256 of the names, slices and shapes of the expanded targets."""
    return hashlib.sha256(_json([[t.module, t.start, t.stop, list(t.shape)] for t in targets]).encode()).hexdigest()


class BaseDigest:
    """SHA-256 of name, shape and stored bytes of every target slice, fed row by row in target order."""

    def __init__(self) -> None:
        self._digest, self._dtypes = hashlib.sha256(), set[str]()

    def add(self, target: Target, row: int, rows: Tensor) -> None:
        """The next rows of the base, from row `row` of the weight on."""
        if row == target.start:
            self._digest.update(f"{target.name}{list(target.shape)}".encode())
        self._digest.update(rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self._dtypes.add(str(rows.dtype).removeprefix("torch."))

    @property
    def found(self) -> tuple[str, str]:
        """(The digest, the dtype of the slices)."""
        return self._digest.hexdigest(), "+".join(sorted(self._dtypes))


def digest_base(model: nn.Module, targets: Sequence[Target]) -> tuple[str, str]:
    """(SHA-256 over name, shape and stored bytes of every target slice, their dtype)."""
    digest = BaseDigest()
    for target in targets:
        weight = model.get_submodule(target.module)._parameters["weight"]
        assert weight is not None
        digest.add(target, target.start, weight[target.start : target.stop])
    return digest.found


def check_base(model: nn.Module, targets: Sequence[Target], stored: StoredAdapter, *, where: str) -> None:
    """Refuse a base whose target slices differ from those of training; raises as `check_digest`."""
    check_digest(digest_base(model, targets), stored, where=where)


def check_digest(found: tuple[str, str], stored: StoredAdapter, *, where: str, allow_mismatch: bool = False) -> None:
    """Refuse a base whose (digest, dtype) differ from those of training.

    Args:
        allow_mismatch: accept another base, unless frozen factors come from it, whose singular vectors would differ.

    Raises:
        MismatchError: the base differs, with a separate message if its dtype does.
    """
    if allow_mismatch and stored.config.frozen != "svd":
        return
    sha256, dtype = found
    if sha256 == stored.base["sha256"]:
        return
    name = stored.base.get("name")
    if dtype != stored.base.get("dtype"):
        raise MismatchError(
            f"the base is stored as {dtype}, but the adapter was trained on {stored.base.get('dtype')}",
            where=where,
            hint=f"load {name} as {stored.base.get('dtype')}, or --allow-base-mismatch",
        )
    raise MismatchError(
        f"not the base that the adapter was trained on: sha256 {sha256[:12]}… instead of {stored.base['sha256'][:12]}…",
        where=where,
        hint=f"use the weights of {name}, or --allow-base-mismatch",
    )


def _json(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
