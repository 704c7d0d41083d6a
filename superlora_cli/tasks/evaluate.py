"""Evaluate and merge finished runs, from their file alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superlora_cli.adapter.attach import detach
from superlora_cli.adapter.merge import merged_state
from superlora_cli.analysis.confusion import draw, per_class
from superlora_cli.data.splits import EMBEDDED_SETS, Look, load_splits
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.files import safetensors_bytes, write_atomic
from superlora_cli.recipe.schema import DiffusionSection
from superlora_cli.tasks.build import Built, build_from_file, resolve_result
from superlora_cli.tasks.choose import task_of
from superlora_cli.tasks.classification import Classification
from superlora_cli.training.processes import join

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.5, torch.float16: 0.1}  # largest difference of outputs


def evaluate(
    path: Path, overrides: Sequence[str] = (), *, allow_mismatch: bool = False, plot: Path | None = None
) -> dict[str, Any]:
    """Metrics of a run or adapter on the test split of its recipe's data.

    Args:
        plot: picture of the confusion matrix to write.

    Returns:
        task, metrics, n, for classification per_class, and what was evaluated.

    Raises:
        UsageError: a class of the data that the model does not know, or a picture that cannot be written.
    """
    if plot is not None and not plot.parent.is_dir():
        raise UsageError("no such folder", where=str(plot.parent), hint="make it first")
    built = build_from_file(resolve_result(path), overrides, allow_mismatch=allow_mismatch)
    if plot is not None and built.recipe.task != "classification":
        raise UsageError(f"the task {built.recipe.task} has no classes to confuse", where="--plot", hint="leave it out")
    processes = join(built.recipe.train)
    try:
        task = task_of(built.recipe)(built, processes)
        found: dict[str, Any] = {"task": built.recipe.task}
        if isinstance(task, Classification):
            found["metrics"], matrix = task.judge("test")
            found["per_class"] = per_class(matrix, task.output_names)
            if plot is not None and processes.is_main:
                _draw(matrix, task.output_names, plot)
        else:
            found["metrics"] = task.evaluate("test")
        return {
            **found,
            "n": len(task.splits.test),  # type: ignore[arg-type]
            "data": built.recipe.data.name,
            "model": built.recipe.model.name,
            "params": built.adapter.plan.params if built.adapter else 0,
        }
    finally:
        processes.end()


def _draw(matrix: Tensor, names: Sequence[str], plot: Path) -> None:
    try:
        draw(matrix, names, plot)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot write the picture: {error}", where=str(plot), hint="a .svg, .png or .pdf file"
        ) from None


def merge(
    path: Path,
    out: Path,
    *,
    base: Path | None = None,
    dtype: str | None = None,
    verify: bool = True,
    unmerge: bool = False,
    force: bool = False,
    allow_mismatch: bool = False,
) -> dict[str, Any]:
    """Write the base's weights with ΔW added, under the base's own names: `load` says how to use them.

    Args:
        base: the weights to merge into; default: the recipe's base.
        dtype: of the written floating-point tensors; default: as stored.
        verify: compare the outputs of the merged and the adapted model.
        unmerge: subtract ΔW from `base`, a merged file.
        force: overwrite `out`.

    Returns:
        output, tensors_changed, max_abs_error (of outputs, on how many images), verified, and the line of Python
        that loads the file.

    Raises:
        UsageError: the output exists, or an unknown dtype. MismatchError: another base, or the verification failed.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'", where="--dtype", hint="one of " + ", ".join(DTYPES))
    if out.exists() and not force:
        raise UsageError("the file exists", where=str(out), hint="--force overwrites it")
    if not out.parent.is_dir():
        raise UsageError("no such folder", where=str(out.parent), hint="make it first")
    if unmerge and base is None:
        raise UsageError("--unmerge needs the merged file", where="--base", hint="--base MERGED.safetensors")
    result = resolve_result(path)
    built = build_from_file(result, base=base, allow_mismatch=allow_mismatch or unmerge)
    if built.adapter is None:
        raise UsageError("a base without adapter: there is nothing to merge", where=str(result), hint="use it as it is")
    cast = DTYPES[dtype] if dtype else None
    state, changed = merged_state(built.model, built.adapter, sign=-1 if unmerge else 1, dtype=cast)
    error, verified_on = None, None
    if verify and not unmerge:
        images = _verification_images(built)
        error, verified_on = _largest_difference(built, state, images), f"{len(images):,} images"
        stored = cast or next(t.dtype for t in state.values() if t.is_floating_point())
        if not error <= TOLERANCE[stored]:
            raise MismatchError(
                f"merged and adapted outputs differ by {error:.3g}", where=str(out), hint="nothing was written"
            )
    metadata = {"format": "pt", "superlora.merged_from": built.recipe.model.name}
    write_atomic(out, safetensors_bytes({name: tensor.cpu() for name, tensor in state.items()}, metadata))
    return {
        "output": str(out),
        "tensors_changed": len(changed),
        "max_abs_error": error,
        "verified": error is not None,
        "verified_on": verified_on,
        "load": built.base.loading(out),
    }


def _verification_images(built: Built) -> Tensor:
    """The whole test split of an embedded data set, else 64 images of fixed noise: (n, 3, S, S)."""
    base, data = built.base, built.recipe.data
    if data.name in EMBEDDED_SETS:
        look = Look(base.image_size, base.mean, base.std)
        test = load_splits(data, look, seed=0).test
        return torch.stack([test[i][0] for i in range(len(test))])  # type: ignore[arg-type]
    return torch.randn(64, 3, base.image_size, base.image_size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _largest_difference(built: Built, state: dict[str, Tensor], images: Tensor) -> float:
    """Largest difference of merged and adapted outputs; takes the adapter off the model."""
    model = built.model.eval()
    images = images.to(next(model.parameters()).dtype)

    def outputs() -> Tensor:
        return torch.cat([_output(built, batch).float() for batch in images.split(64)])

    adapted = outputs()
    detach(model)
    model.load_state_dict(state)
    return (adapted - outputs()).abs().max().item()


def _output(built: Built, images: Tensor) -> Tensor:
    """Of the model on a batch; a U-Net is asked at time steps and for classes all over their range."""
    if built.base.task == "classification":
        scores: Tensor = built.model(images)
        return scores
    number = torch.arange(len(images))
    settings = built.recipe.diffusion or DiffusionSection()
    labels = (built.model.classes or 0) + 1  # type: ignore[operator]
    noise: Tensor = built.model(images, number * settings.steps // len(images), number % labels)
    return noise
