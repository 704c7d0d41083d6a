"""Check merged weights, by the outputs of the model or tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from superlora_cli.adapter.attach import detach
from superlora_cli.adapter.in_turn import Take
from superlora_cli.adapter.merge import merged_rows
from superlora_cli.adapter.targets import Target
from superlora_cli.data.known import is_embedded
from superlora_cli.data.splits import DATA_SEED, Look, load_splits
from superlora_cli.errors import MismatchError
from superlora_cli.opening.build import Built
from superlora_cli.tasks import TASKS
from superlora_cli.weights.copying import FromFiles
from superlora_cli.weights.reading import Weights, open_weights

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.5, torch.float16: 0.1}  # largest allowed difference of outputs


class Found(NamedTuple):
    """The largest absolute error, what was compared, and on which data."""

    error: float
    what: str
    over: str


@torch.no_grad()
def compare_outputs(built: Built, merged: Path) -> Found:
    """Largest difference between the outputs of the adapted model and those with the merged weights.

    Detaches the adapter from the model.

    Raises:
        MismatchError: it is more than the precision of the merged weights explains.
    """
    model, images, kind = built.model.eval(), _images(built), TASKS[built.recipe.task]
    images = images.to(next(model.parameters()).dtype)

    def outputs() -> Tensor:
        calls = (kind.inputs(model, built.recipe, part) for part in images.split(64))
        return torch.cat([model(*inputs).float() for inputs in calls])

    with built.kept():
        adapted = outputs()
    detach(model)
    with open_weights(merged) as weights:
        state = {name: weights.tensor(name) for name in weights.names}
    model.load_state_dict(state)
    error = (adapted - outputs()).abs().max().item()
    stored = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    if not error <= TOLERANCE.get(stored, 0.0):
        raise MismatchError(f"merged and adapted outputs differ by {error:.3g}", hint="nothing was written")
    return Found(error, "of outputs", f"{len(images):,} images")


def _images(built: Built) -> Tensor:
    """The test split of an embedded data set, else 64 images of fixed noise: (n, 3, S, S)."""
    base, data = built.base, built.recipe.data
    if is_embedded(data.name):
        look = Look(base.image_size, base.mean, base.std)
        test = load_splits(data, look, seed=DATA_SEED).test
        return torch.stack([test[i][0] for i in range(len(test))])
    return torch.randn(64, 3, base.image_size, base.image_size, generator=torch.Generator().manual_seed(0))


def compare_tensors(targets: Sequence[Target], take: Take, source: FromFiles, merged: Weights) -> Found:
    """Largest |merged − base − ΔW| in float32, for when no model can be built; all other tensors must be unchanged.

    Args:
        targets, take: as for `adapter.merge.merged_rows`.
        source: the base.
        merged: the weights written.

    Raises:
        MismatchError: a difference is more than one rounding to the stored dtype.
    """
    largest = 0.0
    for change in merged_rows(targets, take, source.rows, dtype=torch.float32):
        stored = merged.rows(change.name, change.row, change.row + len(change.after))
        off = (stored.float() - change.after).abs()
        allowed = half_ulp(stored.dtype) * change.after.abs() + smallest(stored.dtype)
        if not (off <= allowed).all():
            message = f"off by {off.max():.3g} in the rows from {change.row}"
            raise MismatchError(message, where=change.name, hint="nothing was written")
        largest = max(largest, off.max().item())
    changed = {f"{target.module}.weight" for target in targets}
    for name in merged.names:
        if name not in changed and not _same(merged.tensor(name), source.tensor(name)):
            raise MismatchError("differs from what should have been written", where=name, hint="nothing was written")
    return Found(largest, "of tensors", f"{len(targets):,} targets")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, so that NaN equals NaN."""
    return one.dtype == other.dtype and torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


def half_ulp(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding to `dtype`.

    >>> half_ulp(torch.bfloat16)
    0.00390625
    """
    return torch.finfo(dtype).eps / 2


def smallest(dtype: torch.dtype) -> float:
    """The spacing of numbers near zero, where the relative rounding error has no bound."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def unmerging_bound(merged: Tensor, restored: Tensor) -> float:
    """How far `restored` may be from the base that became `merged`, after two roundings to their dtypes."""
    parts = [half_ulp(t.dtype) * t.abs().max().item() + smallest(t.dtype) for t in (merged, restored)]
    return sum(parts)
