"""An adapter fitted to the difference between a fine-tuned checkpoint and its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from superlora_cli.adapter.inner_config import on_top
from superlora_cli.adapter.store import BaseDigest, StoredAdapter
from superlora_cli.adapter.targets import Target
from superlora_cli.commands.fitting import around, config_of, fitted
from superlora_cli.data.splits import class_count
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.files import check_output
from superlora_cli.models.base import Base
from superlora_cli.models.build import build
from superlora_cli.models.checkpoints import weights_in
from superlora_cli.models.embedded import ASSETS, EMBEDDED
from superlora_cli.models.heads import classifier_parameters
from superlora_cli.models.patterns import expand as expand_weights
from superlora_cli.models.pipelines import (
    COMPONENT,
    PREFIX,
    VAE,
    PipelineBase,
    is_pipeline_folder,
    pipeline_at,
)
from superlora_cli.models.targets import expand
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.schema import ModelSection, Recipe
from superlora_cli.tasks import TASKS
from superlora_cli.weights.reading import open_weights


class Tensors(Protocol):
    """Named tensors, of open files or of a model."""

    @property
    def names(self) -> Sequence[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class InMemory:
    """The weights of a model that has no file."""

    state: Mapping[str, Tensor]

    @property
    def names(self) -> Sequence[str]:
        """Names of its tensors."""
        return list(self.state)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor `name`."""
        return tuple(self.state[name].shape)

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`."""
        return self.state[name]


@dataclass(frozen=True)
class Wanted:
    """What an extraction starts from.

    Attributes:
        tuned: the fine-tuned weights: a safetensors file, index or folder of shards, or a pipeline's folder.
        base: the name of a model, a safetensors file, index or folder of shards, or a pipeline's folder; None: the base
            of `recipe`.
        model: name of the architecture, if `base` is a file.
        patterns: the targets; None: the recipe's, else q and v.
        knobs: those of the adapter, including `method`.
        recipe: its model, data, targets and knobs are used unless the fields above override them.
    """

    tuned: Path
    base: str | None = None
    model: str | None = None
    patterns: Sequence[str] | None = None
    knobs: Mapping[str, Any] | None = None
    recipe: Recipe | None = None


@torch.no_grad()
def extract(wanted: Wanted, out: Path, *, steps: int, force: bool = False) -> dict[str, Any]:
    """Write the adapter whose ΔW is nearest to tuned − base on its targets.

    A classifier that differs is stored as the adapter's head if the architecture is known. Other tensors that differ
    are not in the adapter; they are listed.

    Args:
        steps: most steps of fitting, see `adapter.fit.solve.fit`.
        force: overwrite `out`.

    Returns:
        output, bytes, params (adapter, head), steps, weights (name and relative error of each target), error (of all
        together), start_error (of the closed form), elsewhere (names of changed tensors not in the adapter).

    Raises:
        UsageError: there is no base, the output exists, the targets do not differ, or the knobs do not fit them.
        MismatchError: the two checkpoints do not have the same weights. RunError: a difference is not finite.
    """
    section = _section(wanted)
    knobs = on_top(_recipe_knobs(wanted.recipe), wanted.knobs or {})
    patterns = tuple(
        wanted.patterns or (wanted.recipe.adapter.targets if wanted.recipe and wanted.recipe.adapter else ("q", "v"))
    )
    asked = config_of(knobs)
    shapes = _shapes(section, wanted, patterns)
    with ExitStack() as opened:
        base, source = _open_base(section, wanted, patterns, opened)
        tuned = _open_tuned(shapes, wanted.tuned, patterns, opened)
        check_output(out, force=force)
        targets = (
            expand(shapes.model, patterns)
            if shapes
            else expand_weights(weights_in({name: base.shape(name) for name in base.names}), patterns)
        )
        digest = BaseDigest()
        goal = _differences(base, tuned, targets, digest, wanted.tuned)
        if not any(delta.any() for delta in goal):
            raise UsageError("its target weights equal the base's: nothing to extract", where=str(wanted.tuned),
                             hint="choose other weights with --targets")  # fmt: skip
        rows = (base.tensor(f"{target.module}.weight")[target.start : target.stop] for target in targets)
        head = _head(shapes, base, tuned)
        elsewhere = _elsewhere(base, tuned, targets, head)
        if isinstance(shapes, PipelineBase) and is_pipeline_folder(wanted.tuned):
            elsewhere += _in_other_parts(shapes, wanted.tuned)
        made, found = fitted(asked, targets, goal, rows, steps=steps)
    weights = [{"name": target.name, "error": error} for target, error in zip(targets, found.errors, strict=True)]
    sha256, dtype = digest.found
    StoredAdapter.of(
        made.config,
        targets,
        found.tensors,
        patterns=patterns,
        base=(source, sha256, dtype),
        recipe=_recipe(wanted, section, shapes, patterns, knobs, bool(head)),
        head=head,
        origin={"extracted": wanted.tuned.name, "weights": weights, "error": found.error},
    ).save(out, force=force)
    return {
        "output": str(out),
        "bytes": out.stat().st_size,
        "params": {"adapter": made.params, "head": sum(tensor.numel() for tensor in head.values())},
        "steps": found.steps,
        "weights": weights,
        "error": found.error,
        "start_error": found.start_error,
        "elsewhere": elsewhere,
    }


def _recipe_knobs(recipe: Recipe | None) -> dict[str, Any]:
    if recipe is None or recipe.adapter is None:
        return {}
    seed = {"seed": recipe.seed} if recipe.adapter.seed is None else {}
    return {"method": recipe.adapter.method, **recipe.adapter.knobs, **seed}


def _section(wanted: Wanted) -> ModelSection | None:
    """The architecture and where its weights are; None if only two files are given."""
    section = wanted.recipe.model if wanted.recipe else None
    if wanted.base is None and section is None:
        raise UsageError(
            "no base to compare with", where="--base", hint="give the name of a model, a file, or a recipe"
        )
    given = wanted.base
    if given is not None and wanted.model is None:
        given = pipeline_at(Path(given)) or given
    file = given is not None and Path(given).exists()
    name = wanted.model or (None if file else given)
    if given is not None and not file and (given.endswith(".safetensors") or "/" in given.partition(":")[0]):
        raise UsageError("no such file", where=f"--base {given}", hint="give the name of a model, or its weights")
    if name is not None and (section is None or section.name != name):
        section = ModelSection(name=name, head="frozen")
    if section is not None and file:
        section = section.model_copy(update={"checkpoint": wanted.base})
    return section


def _shapes(section: ModelSection | None, wanted: Wanted, patterns: Sequence[str]) -> Base | None:
    """The architecture on the meta device, with the parts that patterns name."""
    if section is None:
        return None
    recipe = wanted.recipe
    classes = class_count(recipe.data) if recipe and TASKS[recipe.task].trains_head(recipe) else None
    if classes:
        return build(section, classes=classes, weights=False)
    return _built(section, patterns, weights=False)


def _built(section: ModelSection, patterns: Sequence[str], *, weights: bool = True) -> Base:
    base = build(section.model_copy(update={"head": "frozen"}), classes=None, weights=weights)
    base.include(patterns)
    return base


def _open_tuned(shapes: Base | None, tuned: Path, patterns: Sequence[str], opened: ExitStack) -> Tensors:
    """The fine-tuned tensors; of a pipeline's folder, those of the component that the base is, and of text encoders.

    Raises:
        UsageError: the base is not a pipeline. MismatchError: it is one of another kind.
    """
    if not is_pipeline_folder(tuned):
        return opened.enter_context(open_weights(tuned))
    if not isinstance(shapes, PipelineBase):
        hint = "--base diffusers:NAME, or a pipeline's folder"
        raise UsageError("is a text-to-image pipeline, but the base is not known as one", where=str(tuned), hint=hint)
    kwargs = {COMPONENT: shapes.component}
    found = _built(ModelSection(name=f"{PREFIX}{tuned}", head="frozen", kwargs=kwargs), patterns)
    assert isinstance(found, PipelineBase)
    if found.kind != shapes.kind:
        hint = "give two checkpoints of the same model"
        raise MismatchError(f"is a {found.kind}, the base a {shapes.kind}", where=str(tuned), hint=hint)
    return InMemory(found.model.state_dict())


def _in_other_parts(base: PipelineBase, tuned: Path) -> list[str]:
    """Names of tensors that differ in the parts of a pipeline beside `base.model`, in files that both have once."""
    found = []
    for part in (VAE, *base.family.encoders):
        if part == base.component or part in base.encoders:
            continue
        with suppress(UsageError), open_weights(base.folder / part) as old, open_weights(tuned / part) as new:
            found += [f"{part}.{name}" for name in _elsewhere(old, new, [], {})]
    return found


def _open_base(
    section: ModelSection | None, wanted: Wanted, patterns: Sequence[str], opened: ExitStack
) -> tuple[Tensors, str]:
    """The base's tensors, and its name."""
    if section is None:
        assert wanted.base is not None
        return opened.enter_context(open_weights(Path(wanted.base))), Path(wanted.base).name
    embedded = EMBEDDED.get(section.name)
    if section.checkpoint or embedded:
        file = Path(section.checkpoint) if section.checkpoint else ASSETS / embedded.weights  # type: ignore[union-attr]
        return opened.enter_context(open_weights(file)), section.name
    return InMemory(_built(section, patterns).model.state_dict()), section.name


def _differences(
    base: Tensors, tuned: Tensors, targets: Sequence[Target], digest: BaseDigest, where: Path
) -> list[Tensor]:
    """tuned − base of every target, (rows, columns) float32; adds the base's rows to `digest`."""
    goal = []
    for target in targets:
        name = f"{target.module}.weight"
        for tensors, what in ((base, "the base"), (tuned, "the tuned checkpoint")):
            if name not in tensors.names:
                raise MismatchError(
                    f"{what} has no {name}", where=str(where), hint="give two checkpoints of the same model"
                )
        old, new = base.tensor(name), tuned.tensor(name)
        if old.shape != new.shape or old[target.start : target.stop].shape != target.shape:
            message = f"{name} has shape {list(new.shape)}, in the base {list(old.shape)}"
            raise MismatchError(message, where=str(where), hint="give two checkpoints of the same model")
        rows = old[target.start : target.stop]
        digest.add(target, target.start, rows)
        goal.append((new[target.start : target.stop].float() - rows.float()).flatten(1))
    return goal


def _head(shapes: Base | None, base: Tensors, tuned: Tensors) -> dict[str, Tensor]:
    """The fine-tuned classifier, if it differs from the base's."""
    names = classifier_parameters(shapes.model) if shapes else ()
    if not names or not all(name in tuned.names for name in names):
        return {}
    same = all(name in base.names and torch.equal(base.tensor(name), tuned.tensor(name)) for name in names)
    return {} if same else {name: tuned.tensor(name) for name in names}


def _elsewhere(base: Tensors, tuned: Tensors, targets: Sequence[Target], head: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that differ outside targets and head; of a fused weight, only the other rows are compared."""
    rows: dict[str, list[Target]] = {}
    for target in targets:
        rows.setdefault(f"{target.module}.weight", []).append(target)
    there, found = set(tuned.names), []
    for name in base.names:
        if name in head or name not in there:
            continue
        old, new = base.tensor(name), tuned.tensor(name)
        same = old.shape == new.shape
        if same and name in rows:
            others = torch.ones(len(old), dtype=torch.bool)
            for target in rows[name]:
                others[target.start : target.stop] = False
            old, new = old[others], new[others]
        if not same or not torch.equal(old, new.to(old.dtype)):
            found.append(name)
    return found


def _recipe(
    wanted: Wanted,
    section: ModelSection | None,
    shapes: Base | None,
    patterns: Sequence[str],
    knobs: Mapping[str, Any],
    head: bool,
) -> dict[str, Any]:
    """What `eval` and `merge` need to build the base again; {} if the architecture is unknown."""
    if section is None or shapes is None:
        return {}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in knobs.items()}
    model = section.model_copy(update={"head": "new" if head else "frozen"})
    recipe = {**wanted.recipe.to_dict(), "model": model.model_dump()} if wanted.recipe else around(model, shapes.task)
    adapter = {key: value for key, value in plain.items() if value is not None} | {"targets": list(patterns)}
    return recipe_from_dict({**recipe, "adapter": adapter}, "extract").to_dict()
