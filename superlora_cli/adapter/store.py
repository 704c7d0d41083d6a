"""Adapter files: the factors, a trained head, and metadata that identifies their base.

The header has only strings, in sorted order and without times, paths or throughput, so that equal adapters are equal
bytes.
"""

from __future__ import annotations

import hashlib
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
from superlora_cli.adapter.packed import DTYPES, is_packed, tensors_of
from superlora_cli.adapter.positions import pack as pack_positions
from superlora_cli.adapter.positions import unpack as unpack_positions
from superlora_cli.adapter.quantized import as_stored, as_trained, pack, unpack
from superlora_cli.adapter.shapes import Plan, number_bytes
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.files import canonical, write_atomic
from superlora_cli.kinds import ADAPTER_MARK, MODEL_MARK, Kind
from superlora_cli.weights import checksum
from superlora_cli.weights.foreign import IMPORT, recognise
from superlora_cli.weights.small import read_safetensors, safetensors_bytes

HEAD, ALSO, PLACES = "head.", "also.", "_positions"
ALLOW = "--allow-base-mismatch (allow_base_mismatch=True in Python)"


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
        factors: the trained tensors by name, as `quantized.as_stored`: where they have levels, the levels' numbers.
        head: trained tensors outside the adapter, by their name in the model.
        also: the same for the tensors that the knob `also` trains.
        classes: names of the model's output classes, in order; () if they are just numbered.
        origin: for an adapter not trained by a run: its source, and the relative error of every target.
        positions: of the numbers that F places by gradients, as `positions.pack`.
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
    positions: Mapping[str, Tensor] = field(default_factory=dict)

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
        positions: Mapping[str, Tensor] | None = None,
        **beside: Any,
    ) -> StoredAdapter:
        """An adapter to be written.

        Args:
            base: its name, the SHA-256 of its target slices, and their dtype.
            positions: those of `SuperLora.positions`, chosen.
            **beside: head, also, classes, origin.
        """
        layout = plan(config, [target.flat for target in targets])
        named = dict(zip(("name", "sha256", "dtype"), base, strict=True))
        return cls(
            config,
            tuple(patterns),
            digest_targets(targets),
            named,
            recipe or {},
            metrics or {},
            as_stored(layout, factors),
            positions={
                bucket.positions: pack_positions(positions[bucket.positions], bucket.shape.n_out)
                for bucket in layout.buckets
                if positions
            },
            **beside,
        )

    @property
    def beside(self) -> dict[str, Tensor]:
        """All tensors that replace those of the base, by their name in the model: the head and `also`."""
        return {**self.head, **self.also}

    @property
    def number_bytes(self) -> int:
        """Bytes of the factors' numbers, and of their scales and positions where the file has some."""
        numbers = sum(number_bytes(tuple(tensor.shape), self.config.bits) for tensor in self.factors.values())
        return numbers + 4 * len(self.config.scales) + self.position_bytes

    @property
    def position_bytes(self) -> int:
        """Bytes of the stored positions."""
        return sum(packed.numel() for packed in self.positions.values())

    def to_bytes(self) -> bytes:
        """The file in canonical form."""
        tensors = {name: tensor.detach().cpu() for name, tensor in self.factors.items()}
        shapes: dict[str, tuple[int, ...]] = {}
        if self.config.has_levels:
            assert self.config.bits is not None
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            tensors = {name: pack(tensor, self.config.bits) for name, tensor in tensors.items()}
        tensors |= self.positions
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

    def save(self, path: Path, *, force: bool) -> None:
        """Write the file completely or not at all; raises as `write_atomic`."""
        write_atomic(path, self.to_bytes(), force=force)


def load(path: Path) -> StoredAdapter:
    """Read and check an adapter file.

    Raises:
        UsageError: the file is missing, truncated, modified, not a superlora adapter, or of a newer format.
    """
    tensors, metadata = read_safetensors(path)
    if ADAPTER_MARK not in metadata:
        foreign = recognise(tensors, metadata)
        what = foreign or (Kind.MODEL if MODEL_MARK in metadata else Kind.WEIGHTS)
        hint = IMPORT if foreign else "an adapter.safetensors that superlora train wrote"
        raise UsageError(f"{what}, not a superlora adapter", where=str(path), hint=hint)
    if metadata[ADAPTER_MARK] not in FORMAT_VERSIONS:
        version = metadata[ADAPTER_MARK]
        known = f"{', '.join(FORMAT_VERSIONS[:-1])} and {FORMAT_VERSIONS[-1]}"
        message = f"adapter format {version}, but this version reads {known}"
        raise UsageError(message, where=str(path), hint="update superlora")
    checksum.check(tensors, unsealed(metadata), path)
    try:
        said = Header.read(metadata)
        factors = {name: tensor for name, tensor in tensors.items() if not name.startswith((HEAD, ALSO))}
        positions = {name: factors.pop(name) for name in list(factors) if said.config.places and name.endswith(PLACES)}
        if said.config.has_levels:
            assert said.config.bits is not None
            factors = {name: unpack(t, said.config.bits, said.shapes[name]) for name, t in factors.items()}
        for name, tensor in tensors.items():
            if not ((said.config.has_levels and name in factors) or name in positions):
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
            positions=positions,
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"damaged metadata: {error}", where=str(path), hint="copy or train it again") from None


def _check_numbers(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse a tensor that training cannot produce."""
    if tensor.dtype not in DTYPES:
        raise UsageError(
            f"tensor {name} has dtype {tensor.dtype}", where=str(path), hint="expected floating-point numbers"
        )
    if not torch.isfinite(tensor).all():
        raise UsageError(f"tensor {name} holds NaN or Inf", where=str(path), hint="train again at a lower rate")


def restore(adapter: SuperLora, stored: StoredAdapter, *, where: str) -> None:
    """Copy stored factors into an attached adapter.

    Raises:
        MismatchError: the patterns select other targets on this base than were trained.
    """
    check_targets(adapter.targets, stored, where=where)
    check_factors(adapter.plan, stored, where=where)
    with torch.no_grad():
        for name, tensor in as_trained(adapter.plan, stored.factors).items():
            adapter.factors[name].copy_(tensor)
        for name, positions in as_placed(adapter.plan, stored, where=where).items():
            adapter.positions[name].copy_(positions)


def as_placed(plan: Plan, stored: StoredAdapter, *, where: str) -> dict[str, Tensor]:
    """The positions (groups, n_in) of each bucket, where F places the numbers by gradients.

    Raises:
        MismatchError: they do not fit the knobs.
    """
    try:
        shapes = {bucket.positions: bucket.shape for bucket in plan.buckets if stored.positions}
        return {name: unpack_positions(stored.positions[name], own.n_in, own.n_out) for name, own in shapes.items()}
    except ValueError as error:
        raise MismatchError(f"positions do not fit the knobs: {error}", where=where) from None


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
    shapes = {name: tuple(tensor.shape) for name, tensor in {**stored.factors, **stored.positions}.items()}
    if shapes != (wanted := plan.tensors | plan.packed_positions):
        wrong = sorted(set(shapes.items()) ^ set(wanted.items()))[0]
        raise MismatchError(f"tensor {wrong[0]} of shape {list(wrong[1])} does not fit the knobs", where=where)
    if plan.config.scales and len(plan.config.scales) != len(stored.factors):
        message = f"{len(plan.config.scales)} scales for {len(stored.factors)} tensors"
        raise MismatchError(message, where=where, hint="copy or train it again")


def digest_targets(targets: Sequence[Target]) -> str:
    """SHA-256 of the names, slices and shapes of the expanded targets."""
    return hashlib.sha256(canonical([[t.module, t.start, t.stop, list(t.shape)] for t in targets]).encode()).hexdigest()


class BaseDigest:
    """SHA-256 of name, shape and stored bytes of every target slice, fed row by row in target order; of a packed
    weight, of all that it is made of."""

    def __init__(self) -> None:
        self._digest, self._dtypes = hashlib.sha256(), set[str]()

    def add(self, target: Target, row: int, rows: Tensor) -> None:
        """The next rows of the base, from row `row` of the weight on."""
        if row == target.start:
            self._begin(target)
        self._bytes(rows)
        self._dtypes.add(str(rows.dtype).removeprefix("torch."))

    def add_packed(self, target: Target, module: nn.Module) -> None:
        """The packed weight of a layer, whose class stands for its dtype."""
        self._begin(target)
        for name, tensor in tensors_of(module):
            self._digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
            self._bytes(tensor)
        self._dtypes.add(type(module._parameters["weight"]).__name__)

    def _begin(self, target: Target) -> None:
        self._digest.update(f"{target.name}{list(target.shape)}".encode())

    def _bytes(self, tensor: Tensor) -> None:
        self._digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    @property
    def found(self) -> tuple[str, str]:
        """(The digest, the dtype of the slices)."""
        return self._digest.hexdigest(), "+".join(sorted(self._dtypes))


def digest_base(model: nn.Module, targets: Sequence[Target]) -> tuple[str, str]:
    """(SHA-256 over name, shape and stored bytes of every target slice, their dtype)."""
    digest = BaseDigest()
    for target in targets:
        module = model.get_submodule(target.module)
        if is_packed(module):
            digest.add_packed(target, module)
            continue
        weight = module._parameters["weight"]
        assert weight is not None
        digest.add(target, target.start, weight[target.start : target.stop])
    return digest.found


def check_base(model: nn.Module, targets: Sequence[Target], stored: StoredAdapter, *, where: str) -> None:
    """Refuse a base whose target slices differ from those of training; raises as `check_digest`."""
    check_digest(digest_base(model, targets), stored, where=where)


def check_digest(found: tuple[str, str], stored: StoredAdapter, *, where: str, allow_mismatch: bool = False) -> None:
    """Refuse a base whose (digest, dtype) differ from those of training.

    Args:
        allow_mismatch: accept another base, unless ΔW depends on it.

    Raises:
        MismatchError: the base differs, with a separate message if its dtype does.
    """
    if allow_mismatch and not stored.config.reads_base:
        return
    sha256, dtype = found
    if sha256 == stored.base["sha256"]:
        return
    name = stored.base.get("name")
    if dtype != stored.base.get("dtype"):
        raise MismatchError(
            f"the base is stored as {dtype}, but the adapter was trained on {stored.base.get('dtype')}",
            where=where,
            hint=f"load {name} as {stored.base.get('dtype')}, or {ALLOW}",
        )
    raise MismatchError(
        f"not the base that the adapter was trained on: sha256 {sha256[:12]}… instead of {stored.base['sha256'][:12]}…",
        where=where,
        hint=f"use the weights of {name}, or {ALLOW}",
    )
