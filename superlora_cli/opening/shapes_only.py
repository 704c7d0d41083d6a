"""Open an adapter file without the weights of its base: its targets, its updates, and the shapes of the base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.adapter import factored, store
from superlora_cli.adapter.activations import no_delta
from superlora_cli.adapter.attach import SuperLora
from superlora_cli.adapter.forms import own_forms
from superlora_cli.adapter.packed import rows_of
from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Dense, Form, Linear, LowRank
from superlora_cli.errors import RunError, UsageError
from superlora_cli.kinds import Kind
from superlora_cli.models.base import Base
from superlora_cli.models.embedded import ASSETS, EMBEDDED
from superlora_cli.models.targets import expand_stored
from superlora_cli.opening.base import open_base
from superlora_cli.opening.build import recipe_of
from superlora_cli.opening.model_file import read_model
from superlora_cli.opening.results import resolve_result
from superlora_cli.recipe.schema import Recipe


@dataclass
class Stored:
    """An adapter file, its base with shapes only (on the meta device), and the adapter, not attached to it."""

    path: Path
    stored: StoredAdapter
    recipe: Recipe
    base: Base
    adapter: SuperLora

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets, in model order."""
        return self.adapter.targets

    @cached_property
    def modules(self) -> Mapping[str, nn.Module]:
        """All modules of the base by name, without their weights."""
        return dict(self.base.model.named_modules())

    @property
    def loading(self) -> str:
        """A line of Python that creates `model`, the base with its weights."""
        section, embedded = self.recipe.model, EMBEDDED.get(self.recipe.model.name)
        file = Path(section.checkpoint) if section.checkpoint else ASSETS / embedded.weights if embedded else None
        if section.checkpoint and self.base.by_timm:
            overlay: dict[str, Any] = {"file": section.checkpoint}
            if (
                section.head == "frozen" and "num_classes" in self.base.arguments
            ):  # else timm drops the head in the file
                overlay["num_classes"] = self.base.arguments["num_classes"]
            line = f"{self.base.call[:-1]}, pretrained=True, pretrained_cfg_overlay={overlay!r})"
        elif file is not None and section.pretrained:
            line = self.base.loading(file)
        elif section.pretrained and self.base.by_timm:
            line = f"{self.base.call[:-1]}, pretrained=True)"
        else:
            line = self.base.call
        return line if line.startswith("model = ") else f"model = {line}"

    @torch.no_grad()
    def updates(self) -> list[Linear]:
        """The update of every target: its two factors if it is a product of two, else ΔW as (rows, columns).

        Raises:
            RunError: ΔW is not finite.
        """
        plan = self.adapter.plan
        made: list[Linear] = []
        if factored.why_not_factored(plan) is None:
            made = [update for update in self.adapter.compute_factored() if isinstance(update, LowRank)]
        if not made:
            made = [Dense(delta.flatten(1)) for delta in self.adapter.compute()]
        self._check_finite(made)
        return made

    @torch.no_grad()
    def forms(self) -> list[Form]:
        """The update of every target in its own form, see `adapter.forms`.

        Raises:
            RunError: ΔW is not finite.
        """
        made = own_forms(self.adapter)
        self._check_finite(made)
        return made

    def _check_finite(self, made: Sequence[Form]) -> None:
        for target, update in zip(self.targets, made, strict=True):
            if not _finite(update):
                raise RunError("the update is not finite", where=f"{self.path}: {target.name}",
                               hint="train again with a lower learning rate")  # fmt: skip

    @torch.no_grad()
    def deltas(self) -> list[Tensor]:
        """ΔW of every target, in the shape of its weight slice."""
        deltas = [update.dense() for update in self.updates()]
        return [delta.view(target.shape) for delta, target in zip(deltas, self.targets, strict=True)]


def _finite(update: Form) -> bool:
    """Whether ΔW is finite; it is not computed if the norms of its factors already rule out an overflow."""
    bound = math.prod(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) for tensor in update.tensors)
    return bound < torch.finfo(torch.float32).max or bool(torch.isfinite(update.dense()).all())


def read_adapter(path: Path) -> Stored:
    """Read an adapter file, or that of a run folder, and find its targets among the shapes of its base.

    Raises:
        UsageError: it is not an adapter, or its base cannot be built. MismatchError: the targets are another model's.
    """
    path = resolve_result(path)
    if read_model(path) is not None:
        raise UsageError(f"{Kind.MODEL}, without an adapter", where=str(path), hint="use its weights directly")
    stored = store.load(path)
    recipe = recipe_of(stored, path)
    base = open_base(recipe, stored, weights=False)
    targets = expand_stored(base.model, stored)
    adapter = SuperLora(stored.config, targets, base=_base_rows(path, stored, recipe, targets))
    store.restore(adapter, stored, where=str(path))
    return Stored(path, stored, recipe, base, adapter)


def check_update(adapter: Stored, *, hint: str) -> None:
    """Refuse an adapter that is more or less than a ΔW and a head.

    Raises:
        UsageError: it has no ΔW, or has tensors of the base that were trained directly.
    """
    if adapter.stored.also:
        count, kinds = len(adapter.stored.also), " and ".join(adapter.stored.config.also)
        message = f"{count} tensors of the base were trained directly (also: {kinds}), not by a ΔW"
        raise UsageError(message, where=str(adapter.path), hint=hint)
    if adapter.stored.config.activates:
        raise no_delta(adapter.stored.config.activation, str(adapter.path))
    if not adapter.targets:
        raise UsageError("no weight is adapted: there is no ΔW", where=str(adapter.path), hint=hint)


def _base_rows(path: Path, stored: StoredAdapter, recipe: Recipe, targets: Sequence[Target]) -> list[Tensor] | None:
    """The base's rows of every target, if ΔW depends on them; otherwise the base is not read.

    Raises:
        UsageError: the base is not available. MismatchError: it is another one.
    """
    if not stored.config.reads_base:
        return None
    try:
        model = open_base(recipe, stored).model
    except UsageError as error:
        raise UsageError(f"its ΔW depends on the base: {error}", where=str(path), hint=error.hint) from None
    store.check_base(model, targets, stored, where=str(path))
    return list(rows_of(model, targets))
