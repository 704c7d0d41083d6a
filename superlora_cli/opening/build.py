"""Build a base with its adapter, from a recipe or from an adapter file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from superlora_cli.adapter import store
from superlora_cli.adapter.attach import SuperLora, attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.packed import is_packed, weight_shape
from superlora_cli.errors import SuperLoraError, UsageError
from superlora_cli.launch import launched
from superlora_cli.models.base import Base
from superlora_cli.models.checkpoints import digest_base
from superlora_cli.models.heads import classifier_parameters
from superlora_cli.models.loading import load_weights
from superlora_cli.models.parts import chosen, parts_of
from superlora_cli.models.targets import expand, frozen_experts
from superlora_cli.opening.attached import attach_stored
from superlora_cli.opening.base import open_base
from superlora_cli.opening.model_file import StoredModel, read_model
from superlora_cli.opening.results import from_here
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.schema import Recipe

LINEAR = {"mlp", "all-linear"}  # short names that would include experts


def _size(model: nn.Module) -> int:
    """The number of a base's parameters, whatever the number of bytes that they are packed in."""
    found = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("superlora."))
    packed = [layer for layer in model.modules() if is_packed(layer)]
    return found + sum(math.prod(weight_shape(layer)) - layer.get_parameter("weight").numel() for layer in packed)


@dataclass
class Built:
    """A model ready for training or use.

    Attributes:
        adapter: None if the recipe trains the base itself.
        base_digest: (SHA-256 of the target slices, dtype) of the base the adapter belongs to; see `digest_base`.
        stored: whether it was read from the file of a result, else it is new.
        class_names: of the outputs, as stored in the file; () if they are their numbers, or the file has none.
        trained_on: the fingerprint of the data of training ("" if unknown) where the recipe names others; else None.
    """

    recipe: Recipe
    base: Base
    adapter: SuperLora | None
    base_digest: tuple[str, str]
    stored: bool = False
    class_names: tuple[str, ...] = ()
    trained_on: str | None = None

    @property
    def model(self) -> nn.Module:
        """The module, adapted if there is an adapter."""
        return self.base.model

    @property
    def head(self) -> dict[str, nn.Parameter]:
        """Parameters of the new head trained together with an adapter, by name."""
        return self._parameters(self.base.trained_head if self.adapter else ())

    @property
    def also(self) -> dict[str, nn.Parameter]:
        """Parameters of the base that the adapter trains directly, by name."""
        return self._parameters(self.adapter.also if self.adapter else ())

    @property
    def params(self) -> dict[str, int]:
        """Numbers of parameters: `adapter` (0 without one), `head` (trained with it), `base` (the whole base)."""
        return {
            "adapter": self.adapter.params if self.adapter else 0,
            "head": sum(parameter.numel() for parameter in self.head.values()),
            "base": _size(self.model),
        }

    def _parameters(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        return {name: self.model.get_parameter(name) for name in names}

    def kept(self, *, as_trained: bool = False) -> AbstractContextManager[None]:
        """Inside, ΔW or, `as_trained`, what training has of it, is computed only once, for all computation without
        gradients."""
        return self.adapter.kept(as_trained=as_trained) if self.adapter else nullcontext()


def adapter_config(recipe: Recipe) -> AdapterConfig:
    """The adapter's knobs, with the recipe's seed unless the adapter has its own."""
    assert recipe.adapter is not None
    config = recipe.adapter.config()
    return config if recipe.adapter.seed is not None else replace(config, seed=recipe.seed)


def build_for_training(recipe: Recipe, *, weights: bool = True) -> Built:
    """Base, targets and a fresh adapter (ΔW = 0); with `weights=False` shapes only, on the meta device.

    Raises:
        UsageError, MismatchError: as `opening.base.open_base`, `models.targets.expand` and `adapter.attach.attach`.
    """
    base = open_base(recipe, weights=weights)
    if recipe.adapter is None:
        return Built(recipe, base, None, ("", ""))
    config, model = adapter_config(recipe), base.model
    targets = expand(model, recipe.adapter.patterns, without=base.trained_head)
    if (frozen := frozen_experts(model)) and not LINEAR.isdisjoint(recipe.adapter.patterns):
        note = f"{frozen:,} parameters of experts are not in linear layers and stay frozen"
        base = replace(base, note="; ".join(filter(None, (base.note, note))))
    for target in targets:
        if f"{target.module}.weight" in base.trained_head:
            hint = "leave it out, or set model.head: frozen"
            raise UsageError(
                f"{target.module} is a new head, which is trained fully", where="adapter.targets", hint=hint
            )
    head = {*classifier_parameters(model), *base.trained_head}
    also = list(chosen(parts_of(model), config.also, without=head))
    digest = digest_base(model, targets, (*base.trained_head, *also)) if weights else ("", "")
    adapter = attach(model, targets, config, also=also, shapes_only=not weights)
    for name in base.trained_head:
        model.get_parameter(name).requires_grad_(True)
    return Built(recipe, base, adapter, digest)


def build_from_file(
    path: Path, overrides: Sequence[str] = (), *, base: Path | None = None, allow_mismatch: bool = False
) -> Built:
    """Build the base that a result was trained on and attach its adapter, from the file alone.

    Args:
        path: an adapter file, or the model file of a run without an adapter.
        overrides: KEY=VALUE on the stored recipe.
        base: weights to use instead of the recipe's.
        allow_mismatch: accept a base whose target weights differ, unless ΔW depends on them.

    Raises:
        UsageError: not a readable result. MismatchError: base and adapter do not belong together.
    """
    if (model := read_model(path)) is not None:
        return _build_model(path, model, overrides)
    stored = store.load(path)
    recipe = _for_use(recipe_of(stored, path, overrides))
    if base is not None:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"checkpoint": str(base)})})
    made = open_base(recipe, stored)
    adapter = attach_stored(made.model, stored, where=str(path), allow_mismatch=allow_mismatch)
    return Built(recipe, made, adapter, (stored.base["sha256"], stored.base["dtype"]), True, stored.classes)


def shapes_from_file(stored: store.StoredAdapter, path: Path) -> tuple[Recipe, Base] | None:
    """The recipe in an adapter file, and its base with shapes only, on the meta device: no weights, no memory.

    None if the file has no recipe, or its base cannot be built here.
    """
    try:
        recipe = _for_use(recipe_of(stored, path))
        return recipe, open_base(recipe, stored, weights=False)
    except SuperLoraError:
        return None


def recipe_of(stored: store.StoredAdapter, path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in an adapter file, `path`, with KEY=VALUE `overrides`.

    Raises:
        UsageError: it has none: it was saved from Python, or extracted from files of an unknown architecture.
    """
    if not stored.recipe:
        hint = "superlora merge --base FILE, or from Python: superlora_cli.load(model, FILE)"
        raise UsageError("has no recipe, so its base cannot be built", where=str(path), hint=hint)
    return from_here(recipe_from_dict(dict(stored.recipe), str(path), overrides), path.parent)


def stored_recipe(path: Path) -> Recipe:
    """The recipe stored in an adapter or model file, without overrides; raises as `recipe_of`."""
    model = read_model(path)
    if model is None:
        return recipe_of(store.load(path), path)
    return from_here(recipe_from_dict(dict(model.recipe), str(path)), path.parent)


def _for_use(recipe: Recipe) -> Recipe:
    """A stored recipe without the settings that only training needs."""
    unwanted: dict[str, Any] = {"compile": None, "profile": None, "gradient_checkpointing": False}
    if launched() == 1:
        unwanted["shard_base"] = None
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=unwanted)})


def _build_model(path: Path, model: StoredModel, overrides: Sequence[str]) -> Built:
    recipe = _for_use(from_here(recipe_from_dict(dict(model.recipe), str(path), overrides), path.parent))
    section = recipe.model.model_copy(update={"pretrained": False, "checkpoint": None})
    base = open_base(recipe.model_copy(update={"model": section}), classes=len(model.classes) or None)
    load_weights(base.model, path)
    return Built(recipe, base, None, ("", ""), True, model.classes)
