"""Merge an adapter into its base's weights, or take it out of them, in the memory of one group's ΔW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from superlora_cli.adapter import store
from superlora_cli.adapter.activations import no_delta
from superlora_cli.adapter.merge import merged_rows
from superlora_cli.adapter.store import BaseDigest
from superlora_cli.commands.merge_job import MergeJob, open_job
from superlora_cli.commands.merge_language import merge_language
from superlora_cli.commands.merge_pipeline import merge_pipeline
from superlora_cli.commands.verify import Found, compare_outputs, compare_tensors, unmerging_bound
from superlora_cli.data.source import Look
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.files import check_output, replacing, replacing_folder
from superlora_cli.models.base import Base
from superlora_cli.models.language import is_language
from superlora_cli.models.pipelines import is_pipeline
from superlora_cli.opening.build import build_from_file
from superlora_cli.opening.model_file import read_model
from superlora_cli.opening.results import resolve_result
from superlora_cli.tasks import TASKS
from superlora_cli.weights.copying import BESIDE, FromFiles, Source
from superlora_cli.weights.display import WritingDisplay
from superlora_cli.weights.reading import open_weights
from superlora_cli.weights.writing import Draft

SUFFIX = ".safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge(
    path: Path,
    out: Path,
    console: Console | None = None,
    *,
    base: Path | None = None,
    dtype: str | None = None,
    scale: float = 1.0,
    verify: bool = True,
    unmerge: bool = False,
    force: bool = False,
    allow_mismatch: bool = False,
    dequantise: bool = False,
) -> dict[str, Any]:
    """Write the base's weights plus ΔW, under the base's own names.

    Args:
        out: a file, or a folder if the base is in shards, a text-to-image pipeline or a language model.
        console: where to show progress; None: nowhere.
        base: the weights to merge into: a file, an index of shards, or a folder; default: the recipe's base.
        dtype: of the floating-point tensors written; default: as stored.
        scale: a number that ΔW is multiplied by; not the head.
        verify: compare the outputs of the merged and the adapted model, or the tensors if no model can be built.
        unmerge: subtract ΔW from `base`, a merged file; its head is not restored.
        force: overwrite `out`.
        dequantise: write the quantised base of an adapter with all bits.

    Returns:
        output, tensors_changed, verified, max_abs_error, compared (what was) and verified_on (which data), both None
        if not verified, rounding_bound (with `unmerge`), dequantised (with `dequantise`: from what, to which dtype),
        load, a line of Python that loads the file, and, for a classifier of images, preprocess, one that makes the
        transform of its images.

    Raises:
        UsageError: the output exists, the dtype is unknown, a file cannot be read, or the base is quantised (without
        `dequantise`). RunError: the disk is full, or a weight is not finite. MismatchError: it is another base, or the
        verification failed.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'", where="--dtype", hint="one of " + ", ".join(DTYPES))
    check_scale(scale)
    adapter, cast = resolve_result(path), DTYPES[dtype] if dtype else None
    if unmerge and base is None:
        raise UsageError("--unmerge needs the merged file", where="--base", hint="--base MERGED.safetensors")
    section = _model_of(adapter, scale)
    name, quantize = str(section.get("name", "")), section.get("quantize")
    if quantize and not dequantise:
        hint = "--dequantise writes all weights in the precision of the others, or --dtype"
        raise UsageError(f"its base is quantised ({quantize}): ΔW cannot be added to it", where=str(adapter), hint=hint)
    if dequantise and not quantize:
        raise UsageError("the adapter's base is not quantised", where="--dequantise", hint="leave it out")
    for named, into, what in (
        (is_pipeline, merge_pipeline, "text-to-image pipeline"),
        (is_language, merge_language, "language model"),
    ):
        if named(name):
            if base is not None:
                hint = "leave it out: it is merged into the one of its recipe"
                raise UsageError(f"does not apply to a {what}", where="--base", hint=hint)
            return into(
                adapter, out, dtype=cast, scale=scale, verify=verify, force=force, allow_mismatch=allow_mismatch
            )
    _check_output(out, base, force)
    with open_job(adapter, base, cast, scale=scale, unmerge=unmerge, allow_mismatch=allow_mismatch) as job:
        if unmerge and (job.stored.also or not job.targets):
            what = f"{len(job.stored.also)} tensors" if job.stored.also else "the head"
            raise UsageError(f"the adapter replaces {what} of the base, which cannot be restored from a merged file",
                             where=str(job.file), hint="keep the base")  # fmt: skip
        accepted = allow_mismatch and not job.stored.config.reads_base
        check = isinstance(job.source, FromFiles) and not (unmerge or accepted)
        with _place(out, job.source, force) as place:
            bound = _write(job, out, place, console, sign=-1 if unmerge else 1, cast=cast, check=check)
            found: Found | None = None
            if verify:
                found = _distance(job, place, bound, allow_mismatch) if unmerge else _verify(job, place, base)
        return {
            "output": str(out),
            "tensors_changed": len({target.module for target in job.targets}) + len(job.stored.also),
            "max_abs_error": found.error if found else None,
            "verified": found is not None,
            "compared": found.what if found else None,
            "verified_on": found.over if found else None,
            **({"rounding_bound": bound} if unmerge else {}),
            "load": _loading(job, out),
            **({"preprocess": _preprocessing(job.shapes[1])} if job.shapes and _is_classifier(job.shapes[1]) else {}),
        }


def check_scale(scale: float) -> None:
    """Refuse a number that ΔW cannot be multiplied by.

    Raises:
        UsageError: it is not finite.
    """
    if not math.isfinite(scale):
        raise UsageError(f"{scale} is not finite", where="--scale", hint="a number, e.g. 0.7")


def _model_of(file: Path, scale: float) -> Mapping[str, Any]:
    """The model in the recipe of an adapter, or of a model that was trained itself.

    Raises:
        UsageError: it is neither, an adapter without a ΔW, or to be scaled and more than a ΔW and a head.
    """
    found = read_model(file) or store.load(file)
    if scale != 1 and (not isinstance(found, store.StoredAdapter) or found.also):
        what = "it has tensors that were trained directly, not by a ΔW"
        raise UsageError(what, where="--scale", hint="leave it out")
    if isinstance(found, store.StoredAdapter) and found.config.activates:
        raise no_delta(found.config.activation, str(file))
    return found.recipe.get("model") or {}


def _check_output(out: Path, base: Path | None, force: bool) -> None:
    """As `files.check_output`, with another hint where the output is the base."""
    if base is not None and base.exists() and out.exists() and not force:
        own = [base, *(base.iterdir() if base.is_dir() else [])]
        if any(out.samefile(one) for one in own):
            hint = "choose another --out, or --force to replace the base with the result"
            raise UsageError("the output is the base itself", where=str(out), hint=hint)
    check_output(out, force=force)


@contextmanager
def _place(out: Path, source: Source, force: bool) -> Iterator[Path]:
    """The temporary file or folder that becomes the output."""
    if not source.folder:
        hint = f"--out {out}{SUFFIX}, or {out / 'model'}{SUFFIX}"
        if out.is_dir():
            raise UsageError("is a folder, but the base is a single file", where=str(out), hint=hint)
        if out.suffix != SUFFIX:
            raise UsageError(f"does not end in {SUFFIX}, by which timm knows what it is", where=str(out), hint=hint)
        with replacing(out, force=force) as place:
            yield place
        return
    if out.suffix == SUFFIX or (out.exists() and not out.is_dir()):
        raise UsageError("is a file, but the base is in shards", where=str(out), hint="--out FOLDER")
    for other in out.iterdir() if out.exists() else []:
        if not (other.is_file() and other.suffix in (*BESIDE, SUFFIX)):
            hint = "--force only replaces folders that hold nothing but weights"
            raise UsageError(f"also holds {other.name}", where=str(out), hint=hint)
    with replacing_folder(out, force=force) as place:
        yield place


def _write(
    job: MergeJob,
    out: Path,
    place: Path,
    console: Console | None,
    *,
    sign: int,
    cast: torch.dtype | None,
    check: bool,
) -> float:
    """Write everything to `place`; return how far an unmerged weight may be from the base's at most.

    Raises:
        MismatchError: the base, hashed on the way, is not the adapter's (with `check`).
    """
    skip: dict[str, list[tuple[int, int]]] = {}
    for target in job.targets:
        skip.setdefault(f"{target.module}.weight", []).append((target.start, target.stop))
    digest, bound = BaseDigest(), 0.0
    with ExitStack() as opened:
        progress: Callable[[int], object] = lambda count: None  # noqa: E731
        if console is not None:
            progress = opened.enter_context(WritingDisplay(console, f"writing {out.name}", job.source.bytes)).advance
        draft = opened.enter_context(Draft(out, progress))
        job.source.lay_out(draft, place)
        pool = opened.enter_context(
            ThreadPoolExecutor(3)
        )  # copies unchanged bytes, hashes and syncs while rows are merged
        opened.callback(draft.stop)  # on failure, do not finish a large copy before reporting it
        copying = pool.submit(job.source.fill, draft, skip)
        hashing = settling = pool.submit(lambda: None)
        if not job.source.leaves:
            copying.result()
        for change in merged_rows(job.targets, job.take(), job.source.rows, sign=sign, dtype=cast):
            draft.write(change.name, change.after, change.row)
            if check:
                hashing.result()
                hashing = pool.submit(digest.add, change.target, change.row, change.before)
            if draft.unsettled and settling.done():
                settling.result()
                settling = pool.submit(draft.settle)
            if sign < 0:
                bound = max(bound, unmerging_bound(change.before, change.after))
        copying.result()
        hashing.result()
        settling.result()
    if check:
        _check_digest(job, digest)
    return bound


def _check_digest(job: MergeJob, digest: BaseDigest) -> None:
    """Refuse another base; if the right one is available, name the first weight that differs."""
    for target in job.known_by:
        digest.add(target, 0, job.source.rows(f"{target.module}.weight", 0, target.stop))
    try:
        store.check_digest(digest.found, job.stored, where=str(job.file))
    except MismatchError as error:
        right = job.own_base()
        for target in (*job.targets, *job.known_by) if right else ():
            assert right is not None
            name = f"{target.module}.weight"
            rows = job.source.rows(name, target.start, target.stop)
            if not torch.equal(rows, right[name][target.start : target.stop]):
                error.message += f"; the first weight that differs is {target.name}"
                break
        raise


def _distance(job: MergeJob, place: Path, bound: float, allow_mismatch: bool) -> Found | None:
    """Largest difference between the unmerged weights and the base's, if the base is available.

    Raises:
        MismatchError: it is more than rounding explains.
    """
    base = job.own_base()
    if base is None:
        return None
    largest = 0.0
    with open_weights(place) as written:
        for target in job.targets:
            name = f"{target.module}.weight"
            rows = base[name][target.start : target.stop].float()
            largest = max(largest, (written.rows(name, target.start, target.stop).float() - rows).abs().max().item())
    if largest > 2 * bound and not allow_mismatch:
        hint = "it was not merged with this adapter; --allow-base-mismatch writes it anyway"
        raise MismatchError(
            f"the unmerged weights differ from the base by {largest:.3g}", where=str(job.file), hint=hint
        )
    return Found(largest, "from the base", f"the adapted weights of {job.stored.base.get('name')}")


def _verify(job: MergeJob, place: Path, base: Path | None) -> Found:
    """The largest error, as `commands.verify` finds it."""
    if job.shapes is not None:
        built = job.built or build_from_file(job.file, base=base, allow_mismatch=True)
        if built.adapter is not None:
            built.adapter.strength = job.scale
        return compare_outputs(built, place)
    assert isinstance(job.source, FromFiles)
    with open_weights(place) as merged:
        return compare_tensors(job.targets, job.take(), job.source, merged)


def _loading(job: MergeJob, out: Path) -> str:
    """A line of Python that loads the output."""
    if job.source.folder:
        if (out / "config.json").exists():
            return f"transformers.AutoModel.from_pretrained({str(out)!r})"
        return f"accelerate.load_checkpoint_in_model(model, {str(out)!r})"
    if job.shapes is not None:
        return job.shapes[1].loading(out)
    return f"model.load_state_dict(safetensors.torch.load_file({str(out)!r}))"


def _is_classifier(base: Base) -> bool:
    """Whether it is one of images."""
    return TASKS[base.task].tells_classes and base.image_size > 0


def _preprocessing(base: Base) -> str:
    """A line of Python that makes the transform from an RGB image to the input of a classifier, as in evaluation."""
    words = [f"{key}={value!r}" for key, value in Look(base.image_size, base.mean, base.std).keywords.items()]
    return f"timm.data.create_transform({', '.join(words)})"
