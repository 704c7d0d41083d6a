"""What to merge into what: an adapter's targets, found in a model or by the tensor names of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from superlora_cli.adapter import store
from superlora_cli.adapter.from_base import FromBase, from_base, with_positions
from superlora_cli.adapter.in_turn import Take, in_turn
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.merge import plain_state
from superlora_cli.adapter.packed import Rows
from superlora_cli.adapter.quantized import as_trained
from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.kinds import Kind, check_kind
from superlora_cli.models.base import Base
from superlora_cli.models.checkpoints import targets_in, witnesses
from superlora_cli.models.embedded import EMBEDDED
from superlora_cli.models.heads import classifier_parameters
from superlora_cli.models.loading import check_shapes, is_safetensors
from superlora_cli.models.targets import expand_stored
from superlora_cli.opening.base import open_base
from superlora_cli.opening.build import Built, build_from_file, shapes_from_file
from superlora_cli.opening.model_file import read_model
from superlora_cli.recipe.schema import Recipe
from superlora_cli.weights.copying import FromFiles, FromState, Source
from superlora_cli.weights.reading import Weights, open_weights

BASES = (Kind.MODEL, Kind.WEIGHTS, Kind.INDEX, Kind.JSON, Kind.SHARDS, Kind.TORCH, Kind.RUN, Kind.FOLDER)


@dataclass
class MergeJob:
    """An adapter and the weights to merge it into.

    Attributes:
        file: the adapter file.
        source: the base's weights.
        built: the adapted model, if the base's weights are in memory.
        shapes: the recipe and its base without weights, if that can be built.
        merged: whether the source holds merged weights.
        known_by: weights that identify the base if there are no targets.
        scale: a number that ΔW is multiplied by.
    """

    file: Path
    stored: StoredAdapter
    targets: tuple[Target, ...]
    source: Source
    built: Built | None = None
    shapes: tuple[Recipe, Base] | None = None
    merged: bool = False
    known_by: Sequence[Target] = ()
    scale: float = 1.0

    def take(self) -> Take:
        """A function that returns the next elements of the concatenated ΔW, from the first on."""
        layout = plan(self.stored.config, [target.flat for target in self.targets])
        store.check_factors(layout, self.stored, where=str(self.file))
        positions = store.as_placed(layout, self.stored, where=str(self.file))
        taken = with_positions(self._from_base, layout, positions)
        made = in_turn(layout, as_trained(layout, self.stored.factors), taken)
        return made if self.scale == 1 else lambda count: made(count) * self.scale

    @cached_property
    def _from_base(self) -> FromBase | None:
        """What ΔW takes from the base.

        Raises:
            UsageError: the weights are merged, and the base is not available.
        """
        if not self.stored.config.reads_base:
            return None
        layout = plan(self.stored.config, [target.flat for target in self.targets])
        if not self.merged:
            return from_base(layout, Rows(self.targets, self.source.rows))
        base = self.own_base()
        if base is None:
            raise UsageError("its ΔW depends on the base, which is not available", where=str(self.file),
                             hint="keep the base: it cannot be restored from a merged file")  # fmt: skip
        return from_base(layout, Rows(self.targets, lambda name, start, stop: base[name][start:stop]))

    def own_base(self) -> Mapping[str, Tensor] | None:
        """The state dict of the base the adapter was trained on, if that is shipped or in a file."""
        if self.shapes is None:
            return None
        recipe, _ = self.shapes
        section = recipe.model
        file = Path(section.checkpoint) if section.checkpoint else None
        here = file.exists() if file else section.name in EMBEDDED and section.pretrained
        if not here:
            return None
        model = open_base(recipe, self.stored).model
        right = store.digest_base(model, self.targets or self.known_by)[0] == self.stored.base["sha256"]
        return model.state_dict() if right else None


@contextmanager
def open_job(
    file: Path, base: Path | None, cast: torch.dtype | None, *, scale: float, unmerge: bool, allow_mismatch: bool
) -> Iterator[MergeJob]:
    """The adapter of a file, with the weights to merge it into.

    Args:
        base: weights to use instead of the recipe's.
        cast: the dtype to write, if not the stored one.
        scale: a number that ΔW is multiplied by.
        unmerge: the base holds merged weights; its head is left alone.
        allow_mismatch: accept a model in memory whose target weights differ; weights in files are not checked here.

    Raises:
        UsageError: a file cannot be read. MismatchError: adapter and base do not belong together.
    """
    if read_model(file) is not None:
        raise UsageError(f"{Kind.MODEL}: there is nothing to merge", where=str(file), hint="use it directly")
    stored = store.load(file)
    if base is not None:
        check_kind(base, "weights", BASES, "a .safetensors file, an index of shards, or a folder of shards")
    with ExitStack() as opened:
        if base is not None and is_safetensors(base):
            job = _files(file, stored, opened.enter_context(open_weights(base)), cast, keep_head=unmerge)
            yield replace(job, scale=scale)
            return
        built = build_from_file(file, base=base, allow_mismatch=allow_mismatch or unmerge)
        assert built.adapter is not None
        about = {"format": "pt", "superlora.merged_from": built.recipe.model.name}
        source = FromState(plain_state(built.model), dtype=cast, metadata=about)
        yield MergeJob(file, stored, built.adapter.targets, source, built, (built.recipe, built.base), scale=scale)


def _files(
    file: Path, stored: StoredAdapter, weights: Weights, cast: torch.dtype | None, *, keep_head: bool
) -> MergeJob:
    """An adapter and weights on disk: finds the targets in the recipe's model, or by the tensor names in the files."""
    where = str(weights.index or weights.shards[0].path)
    shapes = {name: weights.shape(name) for name in weights.names}
    replaced = {} if keep_head else dict(stored.beside)
    known, heads = shapes_from_file(stored, file), {*stored.beside}
    if known is None:
        targets = targets_in(shapes, stored, where)
    else:
        recipe, made = known
        heads |= {*classifier_parameters(made.model)}
        own = {name: tuple(tensor.shape) for name, tensor in made.model.state_dict().items()}
        if not isinstance(recipe.model.head, str) and not keep_head:
            for name in classifier_parameters(made.model):
                if name in shapes and shapes[name][0] > max(recipe.model.head.select):
                    replaced[name] = weights.tensor(name)[recipe.model.head.select]
        theirs = shapes | {name: tuple(tensor.shape) for name, tensor in replaced.items()}
        check_shapes(own, theirs, where=where)
        targets = expand_stored(made.model, stored)
        if store.digest_targets(targets) != stored.targets_digest:
            raise MismatchError("the adapter's targets are not those of its recipe's model", where=str(file))
    source = FromFiles(weights, dtype=cast, replaced=replaced)
    known_by = () if targets else witnesses(shapes, heads)
    return MergeJob(file, stored, tuple(targets), source, shapes=known, merged=keep_head, known_by=known_by)
