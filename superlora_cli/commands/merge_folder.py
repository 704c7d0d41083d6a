"""Write a merged model as a folder of another library, and check it before it is in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superlora_cli.adapter.attach import detach
from superlora_cli.adapter.layers import merged_weights
from superlora_cli.adapter.packed import is_packed, weight_of
from superlora_cli.commands.verify import TOLERANCE
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.files import check_output, replacing_folder, system_errors
from superlora_cli.models.base import Base
from superlora_cli.models.heads import classes_told_apart
from superlora_cli.models.quantising import SCHEMES
from superlora_cli.opening.base import open_base, without_quantising
from superlora_cli.opening.build import Built


@torch.no_grad()
def merged(built: Built) -> Base:
    """The base with the adapter's ΔW, head and other tensors; the model itself if there is no adapter. A base that is
    quantised is read again with all its bits, and the weights of its quantised layers become those that these computed
    with."""
    if built.adapter is None:
        return built.base
    if not built.recipe.model.quantize:
        detach(built.model, merge=True)
        return built.base
    classes = classes_told_apart(built.head)
    base = open_base(without_quantising(built.recipe), classes=classes)
    weights = {f"{name}.weight": weight_of(layer) for name, layer in built.model.named_modules() if is_packed(layer)}
    weights |= {f"{name}.weight": weight for name, weight in merged_weights(built.model, built.adapter).items()}
    weights |= {**built.head, **built.also}
    for name, weight in weights.items():
        base.model.get_parameter(name).copy_(weight)
    return base


def tolerance(built: Built, *dtypes: torch.dtype) -> float:
    """The largest difference of the outputs that rounding of weights to some dtypes explains."""
    quantize = built.recipe.model.quantize
    if quantize and SCHEMES[quantize].rounds_inputs:
        dtypes = (*dtypes, torch.bfloat16)  # whose 8 significant bits round as much
    return max(TOLERANCE.get(dtype, 0.0) for dtype in dtypes)


def check_folder(out: Path, mark: str, *, force: bool, what: str) -> None:
    """Refuse an output that exists, unless it may be replaced: it is empty or, with `force`, one of the same kind.

    Args:
        mark: a file that every folder of this kind has.
        what: the kind, for messages.

    Raises:
        UsageError: as described.
    """
    check_output(out, force=force)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / mark).is_file())):
        raise UsageError(f"is not a {what}", where=str(out), hint=f"--force only replaces a {what}'s folder")


def write_folder(
    out: Path,
    write: Callable[[Path], object],
    *,
    force: bool,
    adapted: Tensor | None,
    outputs: Callable[[Path], Tensor],
    tolerance: float,
) -> float | None:
    """Write a folder and compare the outputs of what was written with those of the adapted model.

    Args:
        write: fills a folder.
        adapted: these outputs; None to compare nothing.
        outputs: of what is in a folder.
        tolerance: the largest difference that is accepted.

    Returns:
        The largest difference.

    Raises:
        RunError: the disk is full. MismatchError: they differ; nothing is written then.
    """
    error = None
    with replacing_folder(out, force=force) as place:
        with system_errors(out):
            write(place)
        if adapted is not None:
            error = (outputs(place) - adapted).abs().max().item()
            if not error <= tolerance:
                raise MismatchError(f"merged and adapted outputs differ by {error:.3g}", hint="nothing was written")
    return error


def changed(built: Built) -> int:
    """How many tensors are not the base's: all of a model that was trained itself."""
    if built.adapter is None:
        return len(list(built.model.parameters()))
    return len({target.module for target in built.adapter.targets}) + len(built.also)


def result(
    built: Built, out: Path, error: float | None, *, tensors: int, dtype: torch.dtype, over: str, load: str
) -> dict[str, Any]:
    """What `commands.merge.merge` returns.

    Args:
        tensors: how many were changed.
        dtype: of the weights that were written.
        over: what the outputs were compared on.
        load: a line of Python.
    """
    quantize = built.recipe.model.quantize
    return {
        "output": str(out),
        **({"dequantised": f"from {quantize} to {str(dtype).removeprefix('torch.')}"} if quantize else {}),
        "tensors_changed": tensors,
        "max_abs_error": error,
        "verified": error is not None,
        "compared": None if error is None else "of outputs",
        "verified_on": None if error is None else over,
        "load": load,
    }
