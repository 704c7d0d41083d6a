"""Several adapters on the same base become one adapter, or one ΔW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from superlora_cli.adapter import store
from superlora_cli.adapter.combine import Term, as_lora, total, union
from superlora_cli.adapter.lowrank import Approximation, approximate, check_limits, nearest, whole_error
from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.adapter.targets import Target
from superlora_cli.adapter.updates import Form, Linear, scaled
from superlora_cli.commands.export import check_options, check_parts, check_place
from superlora_cli.errors import MismatchError, UsageError, did_you_mean
from superlora_cli.files import check_output, write_atomic
from superlora_cli.formats.format import Options, nothing
from superlora_cli.formats.known import FORMATS
from superlora_cli.models.targets import expand
from superlora_cli.opening.base import open_base
from superlora_cli.opening.results import resolve_result
from superlora_cli.opening.shapes_only import Stored, check_update, read_adapter
from superlora_cli.recipe.schema import AdapterSection, Recipe
from superlora_cli.weights.checksum import digest_tensors

ADAPTER = "adapter"


@dataclass
class Sum(Stored):
    """The sum of adapters, for formats to write: the first one with other updates, targets and head."""

    rows: tuple[Target, ...]
    sums: Sequence[Linear]

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.rows

    def updates(self) -> list[Linear]:
        return list(self.sums)

    def forms(self) -> list[Form]:
        return list(self.sums)


def combine(
    paths: Sequence[Path],
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    parts: Mapping[str, float] | None = None,
    to: str = ADAPTER,
    rank: int | None = None,
    energy: float | None = None,
    force: bool = False,
    tell: Callable[[int], None] = nothing,
) -> dict[str, Any]:
    """Write Σ weight · ΔW of several adapters on one base.

    Args:
        paths: run folders or adapter files, of any method.
        weights: one per adapter; default: their mean. A weight of 0 leaves an adapter out.
        parts: target pattern → a number that all ΔW of the weights that it matches are multiplied by, too; of several
            patterns that match a weight, the last counts.
        to: `adapter`, of method lora: exact if every adapter has factors for each weight, else limited by rank or
            energy (see `adapter.lowrank.approximate`); or a format of `export`, but for merged weights.
        force: overwrite `out`.
        tell: called with the bytes of a format before they are written.

    Returns:
        output, to, bytes, params (of an adapter, or of ΔW), head (`mean`, `kept`, `left out`; None: no adapter has a
        trained one); where rank can be limited also weights (name, rank and
        error of each) and error (of all together); notes, if any, as of `export`. A single adapter with weight 1 and no
        limits is copied byte for byte.

    Raises:
        UsageError: the weights do not fit the adapters, or the output exists. MismatchError: the adapters have
            different bases. RunError: an update is not finite.
    """
    kinds = [ADAPTER, *(name for name, form in FORMATS.items() if not (form.merged or form.products))]
    if to not in kinds:
        hint = did_you_mean(to, kinds) or f"one of {', '.join(kinds)}"
        raise UsageError(f"unknown form '{to}'", where="--to", hint=hint)
    if to == ADAPTER:
        check_limits(rank, energy)
    else:
        check_options(to, rank, energy)
    factors = _weights(weights, len(paths))
    files = [resolve_result(path) for path in paths]
    if to == ADAPTER:
        check_output(out, force=force)
    else:
        check_place(to, out, force=force)
    read = [read_adapter(file) for file in files]
    for adapter in read:
        check_update(adapter, hint="only ΔW and heads can be added up")
    added = [(weight, adapter) for weight, adapter in zip(factors, read, strict=True) if weight]
    first = added[0][1]
    recipe = _recipe_of_all(read, first)
    shapes = first.base if recipe is first.recipe else open_base(recipe, first.stored, weights=False)
    factor = _factors(shapes.model, parts or {}, [target for _, adapter in added for target in adapter.targets])
    terms = [Term(weight, adapter.targets, _times(adapter, factor)) for weight, adapter in added]
    targets, patterns, base = _common_base(read, terms, first, recipe)
    if len(added) == 1 and added[0][0] == 1 and not parts and to == ADAPTER and rank is None and energy is None:
        write_atomic(out, first.path.read_bytes(), force=force)
        return _about(out, to, first.adapter.plan.params, _exact(first.targets) | {"head": _fate(added, kept=True)})
    sums = [total(target, terms) for target in targets]
    if to != ADAPTER:
        form = FORMATS[to]
        stored = replace(first.stored, base=base, head=_head(added) if form.head else {})
        whole = Sum(first.path, stored, first.recipe, shapes, first.adapter, tuple(targets), sums)
        check_parts(to, whole)
        done = form.write(whole, out, Options(rank, energy, force, tell))
        params = {} if form.lora else {"params": sum(target.flat.elements for target in targets)}
        told: dict[str, Any] = {key: done[key] for key in ("weights", "error", "notes") if key in done}
        told["head"] = _fate(added, kept=form.head)
        return {"output": str(out), "to": to, "bytes": done["bytes"], **params, **told}
    found, note = _limited(sums, targets, rank, energy)
    config, tensors = as_lora([one.update for one in found], targets, rank=max(one.rank for one in found))
    errors = {
        "weights": [
            {"name": t.name, "rank": one.rank, "error": one.error} for t, one in zip(targets, found, strict=True)
        ],
        "error": whole_error((one.norm, one.error) for one in found),
    }
    scaled_parts = {"parts": dict(parts)} if parts else {}
    section = AdapterSection(method="lora", targets=list(patterns), rank=config.scale_rank)
    made = StoredAdapter.of(
        replace(config, seed=first.stored.config.seed),
        targets,
        tensors,
        patterns=patterns,
        base=(base["name"], base["sha256"], base["dtype"]),
        recipe=first.recipe.model_copy(update={"adapter": section}).to_dict(),
        head=_head(added),
        classes=first.stored.classes,
        origin={"combined": [_source(weight, adapter) for weight, adapter in added], **scaled_parts, **errors},
    )
    made.save(out, force=force)
    errors |= {"head": _fate(added, kept=True), **({"notes": [note]} if note else {})}
    return _about(out, to, sum(tensor.numel() for tensor in tensors.values()), errors)


def _about(out: Path, to: str, params: int, more: dict[str, Any]) -> dict[str, Any]:
    return {"output": str(out), "to": to, "bytes": out.stat().st_size, "params": params, **more}


def _fate(parts: Sequence[tuple[float, Stored]], *, kept: bool) -> str | None:
    """What becomes of the trained heads; None if there are none."""
    if not any(adapter.stored.head for _, adapter in parts):
        return None
    return ("mean" if len(parts) > 1 else "kept") if kept else "left out"


def _exact(targets: Sequence[Target]) -> dict[str, Any]:
    return {"weights": [{"name": target.name, "error": 0.0} for target in targets], "error": 0.0}


def _source(weight: float, adapter: Stored) -> dict[str, Any]:
    return {"weight": weight, "sha256": digest_tensors(adapter.stored.factors), "metrics": adapter.stored.metrics}


def _weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise UsageError(f"{len(weights)} weights for {count} adapters", where="--weights", hint="one per adapter")
    if not all(math.isfinite(weight) for weight in weights):
        raise UsageError("a weight is not finite", where="--weights", hint="finite numbers, e.g. 0.5,0.5")
    if not any(weights):
        raise UsageError("all weights are 0", where="--weights", hint="at least one must not be 0")
    return list(weights)


def _recipe_of_all(read: Sequence[Stored], first: Stored) -> Recipe:
    """The first adapter's recipe, with the targets of all, whose base has every part that one of them adapts."""
    patterns = tuple(dict.fromkeys(pattern for adapter in (first, *read) for pattern in adapter.stored.patterns))
    if patterns == first.stored.patterns:
        return first.recipe
    return first.recipe.model_copy(update={"adapter": AdapterSection(targets=list(patterns))})


def _factors(
    model: nn.Module, parts: Mapping[str, float], targets: Sequence[Target]
) -> dict[tuple[str, int, int], float]:
    """Module and rows of the targets that patterns match → the number of the last pattern.

    Raises:
        UsageError: a number is not finite, or a pattern matches no target, or a part of one.
    """
    found = {}
    for pattern, number in parts.items():
        if not math.isfinite(number):
            raise UsageError(f"the weight of {pattern} is not finite", where="--weights", hint="a number, e.g. 0.5")
        try:
            rows = expand(model, [pattern])
        except UsageError as error:
            raise UsageError(error.message, where="--weights", hint=error.hint) from None
        own = [(t, row) for t in targets for row in rows if t.module == row.module and _overlap(t, row)]
        if not own:
            raise UsageError(f"'{pattern}' matches no weight that is adapted", where="--weights", hint="other weights")
        for target, row in own:
            if not row.start <= target.start < target.stop <= row.stop:
                what = f"'{pattern}' matches a part of {target.name} only"
                raise UsageError(what, where="--weights", hint="all its rows")
            found[target[:3]] = number
    return found


def _overlap(one: Target, other: Target) -> bool:
    return one.start < other.stop and other.start < one.stop


def _times(adapter: Stored, factors: Mapping[tuple[str, int, int], float]) -> list[Linear]:
    """The updates of an adapter, those of some targets times a number."""
    updates = zip(adapter.targets, adapter.updates(), strict=True)
    return [scaled(update, factors[target[:3]]) if target[:3] in factors else update for target, update in updates]


def _common_base(
    read: Sequence[Stored], terms: Sequence[Term], first: Stored, recipe: Recipe
) -> tuple[list[Target], tuple[str, ...], dict[str, str]]:
    """Targets, patterns and base of the sum. The base's weights are read only if the adapters' targets differ.

    Args:
        recipe: has the targets of all.

    Raises:
        MismatchError: an adapter was trained on another base.
    """
    one = read[0]
    for other in read[1:]:
        digests = [adapter.stored.base["sha256"] for adapter in (one, other)]
        if other.stored.targets_digest == one.stored.targets_digest and digests[0] != digests[1]:
            names = [f"{a.stored.base['name']} ({d[:12]}…)" for a, d in zip((one, other), digests, strict=True)]
            message = f"it was trained on {names[1]}, {one.path} on {names[0]}"
            raise MismatchError(message, where=str(other.path), hint="only adapters of the same base can be added up")
    if len({adapter.stored.targets_digest for adapter in read}) == 1:
        return list(first.targets), first.stored.patterns, dict(first.stored.base)
    model = open_base(recipe, first.stored).model
    for adapter in read:
        store.check_base(model, adapter.targets, adapter.stored, where=str(adapter.path))
    patterns = tuple(target.name for target in union(terms))
    targets = expand(model, patterns)
    sha256, dtype = store.digest_base(model, targets)
    return targets, tuple(t.name for t in targets), {**first.stored.base, "sha256": sha256, "dtype": dtype}


def _limited(
    sums: Sequence[Linear], targets: Sequence[Target], rank: int | None, energy: float | None
) -> tuple[list[Approximation], str]:
    """Every sum as a low-rank update, and a note if an adapter needs lower ranks: it has one for all weights, so none
    exceeds the smallest side of any target."""
    found = [approximate(update, rank=rank, energy=energy) for update in sums]
    sides = {target.name: min(target.flat.rows, target.flat.columns) for target in targets}
    smallest = min(sides, key=lambda name: sides[name])
    side = sides[smallest]
    limited = [
        one if one.rank <= side else nearest(update.dense(), rank=side) for one, update in zip(found, sums, strict=True)
    ]
    over = sum(one.rank > side for one in found)
    told = f"{over:,} ranks are limited to {side}, a side of {smallest}: --to delta keeps all"
    return limited, told if over else ""


def _head(parts: Sequence[tuple[float, Stored]]) -> dict[str, Tensor]:
    """The weighted mean of the trained heads; {} if no adapter has one.

    Raises:
        UsageError: the heads differ in shape or classes, only some adapters have one, or the weights add up to 0.
    """
    heads = [dict(adapter.stored.head) for _, adapter in parts]
    if not any(heads):
        return {}
    first = parts[0][1]
    for (_, adapter), head in zip(parts, heads, strict=True):
        shapes, wanted = ({name: tensor.shape for name, tensor in one.items()} for one in (head, heads[0]))
        if shapes != wanted or adapter.stored.classes != first.stored.classes:
            raise UsageError(f"its trained head does not fit that of {first.path}", where=str(adapter.path),
                             hint="use adapters with the same classes, or --to delta")  # fmt: skip
    whole = sum(weight for weight, _ in parts)
    if abs(whole) < 1e-6:
        raise UsageError("the weights add up to 0, so the heads have no mean", where="--weights", hint="--to delta")
    return {
        name: sum((weight / whole * head[name] for (weight, _), head in zip(parts, heads, strict=True)), 0 * tensor)
        for name, tensor in heads[0].items()
    }
