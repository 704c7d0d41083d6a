"""Adapter files: the factors, a trained head, and metadata that ties them to their base.

The header holds strings only, written in sorted order, so that the same adapter is the same bytes: no time,
no path, no throughput.
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
from superlora_cli.adapter.header import FORMAT_VERSIONS, Header, sealed, unsealed
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.quantized import as_stored, as_trained, pack, unpack
from superlora_cli.adapter.shapes import Plan, number_bytes
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.files import write_atomic
from superlora_cli.kinds import ADAPTER_MARK, MODEL_MARK, Kind
from superlora_cli.weights import checksum
from superlora_cli.weights.foreign import recognise
from superlora_cli.weights.small import read_safetensors, safetensors_bytes

HEAD, ALSO = "head.", "also."
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class StoredAdapter:
    """What an adapter file says.

    Attributes:
        config: the knobs.
        patterns: the target patterns as the recipe wrote them.
        targets_digest: SHA-256 over the expanded names, shapes and slices.
        base: `name`, `sha256` and `dtype` of the base's target slices.
        recipe: the whole recipe, as plain data.
        metrics: final metrics of the run.
        factors: the trained tensors by name, as `quantized.as_stored`: where they have levels, the levels' numbers.
        head: trained tensors outside the adapter, by their name in the model.
        also: the same, of what the knob `also` trains.
        classes: what the model's outputs stand for, in their order; () where they are just numbered.
        origin: how an adapter that no run trained was made: from what, and the relative error of every target.
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
        """An adapter as it is to be written.

        Args:
            base: its name, the SHA-256 of what is adapted of it, and its dtype.
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
            as_stored(plan(config, [target.flat for target in targets]), factors),
            **beside,
        )

    @property
    def beside(self) -> dict[str, Tensor]:
        """All tensors that take the place of the base's, by their name in the model: the head's and those of `also`."""
        return {**self.head, **self.also}

    @property
    def number_bytes(self) -> int:
        """Bytes of the factors' numbers, and of their scales where the file has some."""
        numbers = sum(number_bytes(tuple(tensor.shape), self.config.bits) for tensor in self.factors.values())
        return numbers + 4 * len(self.config.scales)

    def to_bytes(self) -> bytes:
        """The file, canonical."""
        tensors = {name: tensor.detach().cpu() for name, tensor in self.factors.items()}
        shapes: dict[str, tuple[int, ...]] = {}
        if self.config.has_levels:
            assert self.config.bits is not None
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            tensors = {name: pack(tensor, self.config.bits) for name, tensor in tensors.items()}
        for prefix, own in ((HEAD, self.head), (ALSO, self.also)):
            tensors |= {prefix + name: tensor.detach().cpu() for name, tensor in own.items()}
        metadata = Header(
            self.config,
            self.patterns,
            self.targets_digest,
            self.base,
            self.recipe,
            self.metrics,
            self.classes,
            self.origin,
            shapes,
        ).written()
        return safetensors_bytes(tensors, sealed(checksum.with_checksum(tensors, metadata)))

    def save(self, path: Path, *, force: bool = True) -> None:
        """Write the file whole or not at all; raises as `write_atomic`."""
        write_atomic(path, self.to_bytes(), force=force)


def load(path: Path) -> StoredAdapter:
    """Read and check an adapter file.

    Raises:
        UsageError: missing, truncated, tampered with, foreign, or of a newer format.
    """
    tensors, metadata = read_safetensors(path)
    if ADAPTER_MARK not in metadata:
        what, hint = recognise(tensors, metadata) or ("", "an adapter.safetensors that superlora train wrote")
        what = what or (Kind.MODEL if MODEL_MARK in metadata else Kind.WEIGHTS)
        message = f"{what}, no superlora adapter"
        raise UsageError(message, where=str(path), hint=hint)
    if metadata[ADAPTER_MARK] not in FORMAT_VERSIONS:
        version = metadata[ADAPTER_MARK]
        known = f"{', '.join(FORMAT_VERSIONS[:-1])} and {FORMAT_VERSIONS[-1]}"
        message = f"adapter format {version}, this version reads {known}"
        raise UsageError(message, where=str(path), hint="update superlora")
    checksum.check(tensors, unsealed(metadata), path)
    try:
        said = Header.read(metadata)
        factors = {name: tensor for name, tensor in tensors.items() if not name.startswith((HEAD, ALSO))}
        if said.config.has_levels:
            assert said.config.bits is not None
            factors = {name: unpack(t, said.config.bits, said.shapes[name]) for name, t in factors.items()}
        for name, tensor in tensors.items():
            if not (said.config.has_levels and name in factors):
                _check_numbers(name, tensor, path)
        return StoredAdapter(
            config=said.config,
            patterns=said.patterns,
            targets_digest=said.targets_digest,
            base=said.base,
            recipe=said.recipe,
            metrics=said.metrics,
            factors=factors,
            head={name.removeprefix(HEAD): t for name, t in tensors.items() if name.startswith(HEAD)},
            also={name.removeprefix(ALSO): t for name, t in tensors.items() if name.startswith(ALSO)},
            classes=tuple(said.classes),
            origin=said.origin,
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"damaged metadata: {error}", where=str(path), hint="copy or train it again") from None


def _check_numbers(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse a tensor that no training leaves."""
    if tensor.dtype not in DTYPES:
        raise UsageError(f"tensor {name} is of {tensor.dtype}", where=str(path), hint="floating-point numbers")
    if not torch.isfinite(tensor).all():
        raise UsageError(f"tensor {name} holds NaN or Inf", where=str(path), hint="train again at a lower rate")


def restore(adapter: SuperLora, stored: StoredAdapter, *, where: str) -> None:
    """Copy stored factors into an attached adapter.

    Raises:
        MismatchError: the targets that the patterns give on this base are not the ones trained.
    """
    check_targets(adapter.targets, stored, where=where)
    check_factors(adapter.plan, stored, where=where)
    with torch.no_grad():
        for name, tensor in as_trained(adapter.plan, stored.factors).items():
            adapter.factors[name].copy_(tensor)


def restore_beside(model: nn.Module, stored: StoredAdapter, *, where: str) -> None:
    """Copy a stored head, and what was trained also, into the parameters of their names.

    Raises:
        MismatchError: the model has none of a name, or one of another shape.
    """
    check_beside(model, stored, where=where)
    with torch.no_grad():
        for name, tensor in stored.beside.items():
            model.get_parameter(name).copy_(tensor)


def check_beside(model: nn.Module, stored: StoredAdapter, *, where: str) -> None:
    """Refuse tensors that a model has no place for.

    Raises:
        MismatchError: names the first parameter.
    """
    own = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, tensor in stored.beside.items():
        if own.get(name) != tensor.shape:
            hint = "another head" if name in stored.head else "another base"
            raise MismatchError(f"the base has no {name} like {list(tensor.shape)}", where=where, hint=hint)


def check_targets(targets: Sequence[Target], stored: StoredAdapter, *, where: str) -> None:
    """Refuse targets that are not, by name, rows and shape, the ones that were adapted.

    Raises:
        MismatchError: names the base that the adapter was trained on.
    """
    if digest_targets(targets) != stored.targets_digest:
        raise MismatchError("the adapter's targets are not the ones of this base", where=where,
                            hint=f"it was trained on {stored.base.get('name')}")  # fmt: skip


def check_factors(plan: Plan, stored: StoredAdapter, *, where: str) -> None:
    """Refuse stored factors that have not the shapes that the knobs give on these targets.

    Raises:
        MismatchError: names the first.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.factors.items()}
    if shapes != plan.tensors:
        wrong = sorted(set(shapes.items()) ^ set(plan.tensors.items()))[0]
        raise MismatchError(f"tensor {wrong[0]} of shape {list(wrong[1])} does not fit the knobs", where=where)
    if plan.config.scales and len(plan.config.scales) != len(shapes):
        message = f"{len(plan.config.scales)} scales for {len(shapes)} tensors"
        raise MismatchError(message, where=where, hint="copy or train it again")


def digest_targets(targets: Sequence[Target]) -> str:
    """SHA-256 over names, slices and shapes of the expanded targets."""
    return hashlib.sha256(_json([[t.module, t.start, t.stop, list(t.shape)] for t in targets]).encode()).hexdigest()


class BaseDigest:
    """SHA-256 over name, shape and stored bytes of every target slice, told rows after rows in the targets' order."""

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
    """Refuse a base whose target bytes are not the ones that were adapted; raises as `check_digest`."""
    check_digest(digest_base(model, targets), stored, where=where)


def check_digest(found: tuple[str, str], stored: StoredAdapter, *, where: str, allow_mismatch: bool = False) -> None:
    """Refuse the (digest, dtype) of a base that is not the one that was adapted.

    Args:
        allow_mismatch: accept another base, unless frozen factors come from it: its singular vectors are others.

    Raises:
        MismatchError: with a message of its own where only the dtype differs.
    """
    if allow_mismatch and stored.config.frozen != "svd":
        return
    sha256, dtype = found
    if sha256 == stored.base["sha256"]:
        return
    name = stored.base.get("name")
    if dtype != stored.base.get("dtype"):
        raise MismatchError(
            f"the base is stored as {dtype}, the adapter was trained on {stored.base.get('dtype')}",
            where=where,
            hint=f"load {name} as {stored.base.get('dtype')}, or --allow-base-mismatch",
        )
    raise MismatchError(
        f"not the base the adapter was trained on: sha256 {sha256[:12]}… is not {stored.base['sha256'][:12]}…",
        where=where,
        hint=f"use the weights of {name}, or --allow-base-mismatch",
    )


def _json(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
