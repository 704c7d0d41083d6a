"""Quantise an adapter that was trained in float32, optionally with a few training steps to recover accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from superlora_cli.adapter.attach import SuperLora
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.lowrank import errors_of, whole_error
from superlora_cli.adapter.quantized import as_stored, quantised_after
from superlora_cli.adapter.store import StoredAdapter, load
from superlora_cli.errors import RunError, UsageError
from superlora_cli.files import check_output
from superlora_cli.opening.build import Built, build_from_file
from superlora_cli.opening.results import resolve_result
from superlora_cli.tasks import task_of
from superlora_cli.training.learner import Learner
from superlora_cli.training.loop import take_step
from superlora_cli.training.meter import Meter
from superlora_cli.training.processes import join

RATE = "train.optimizer.lr"
SHARE = 0.1  # of the learning rate that the adapter was trained with


def compress(
    path: Path, out: Path, overrides: Sequence[str] = (), *, bits: int, tune: int = 0, force: bool = False
) -> dict[str, Any]:
    """Write a quantised copy of an adapter, with `bits` bits per number.

    Args:
        path: a run, or an adapter file of float32 numbers.
        overrides: KEY=VALUE for the stored recipe, such as the place of the data, or the learning rate of `tune`.
        tune: training steps after quantising, with the recipe's data, optimizer and schedule, and `SHARE` of its
            learning rate unless `overrides` set one.
        force: overwrite `out`.

    Returns:
        output, bytes (of the file), params, numbers (bits and bytes), weights (name and relative error of ΔW), error
        (of all together), metrics_before and metrics (on the test split).

    Raises:
        UsageError: the adapter is already quantised or has no ΔW; the output exists; or as `build_from_file`.
    """
    file = resolve_result(path)
    stored = load(file)
    if stored.config.bits is not None:
        raise UsageError(
            f"already has {stored.config.bits} bits per number",
            where=str(file),
            hint="use an adapter trained in float32",
        )
    if not stored.config.adapts:
        raise UsageError("no weight is adapted, so there is no ΔW", where=str(file), hint="use an adapter with factors")
    check_output(out, force=force)
    built = build_from_file(file, overrides)
    assert built.adapter is not None
    before = _judged(built)
    wanted = [delta.detach() for delta in built.adapter.compute()]  # on the device, as those after quantising
    config = quantised_after(built.adapter.plan, stored.factors, bits)
    small = _small(replace(stored, config=config), built.adapter)
    if tune:
        share = 1.0 if any(words.startswith(f"{RATE}=") for words in overrides) else SHARE
        small = _tuned(small, stored.factors, _built(small, overrides), tune, share)
    found = _built(small, overrides)
    assert found.adapter is not None
    metrics = _judged(found)
    small = replace(small, metrics={**stored.metrics, **metrics})
    small.save(out, force=force)
    errors = errors_of(found.adapter.compute(), wanted)
    names = [target.name for target in found.adapter.targets]
    return {
        "output": str(out),
        "bytes": out.stat().st_size,
        "params": found.adapter.plan.params,
        "numbers": {"bits": bits, "bytes": small.number_bytes},
        "weights": [{"name": name, "error": error} for name, (_, error) in zip(names, errors, strict=True)],
        "error": whole_error(errors),
        "metrics_before": before,
        "metrics": metrics,
    }


def _small(whole: StoredAdapter, like: SuperLora, factors: Mapping[str, Tensor] | None = None) -> StoredAdapter:
    """The adapter with its factors, or the given ones, quantised."""
    shapes = plan(whole.config, [target.flat for target in like.targets])
    return replace(whole, factors=as_stored(shapes, whole.factors if factors is None else factors))


def _built(small: StoredAdapter, overrides: Sequence[str]) -> Built:
    """The base with the adapter attached, as if loaded from the file to be written."""
    with TemporaryDirectory(prefix="superlora-") as folder:
        draft = Path(folder) / "adapter.safetensors"
        small.save(draft, force=True)
        return build_from_file(draft, overrides)


def _judged(built: Built) -> dict[str, float]:
    processes = join(built.recipe.train)
    try:
        return task_of(built.recipe)(built, processes).judge("test").metrics
    finally:
        processes.end()


def _tuned(
    small: StoredAdapter, factors: Mapping[str, Tensor], built: Built, steps: int, share: float
) -> StoredAdapter:
    """The adapter after some training steps, which start from the numbers before quantising."""
    train = built.recipe.train
    train = train.at_rate(share * train.optimizer.rate)
    train = train.model_copy(update={"steps": steps, "epochs": None, "ema": None})
    built = replace(built, recipe=built.recipe.model_copy(update={"train": train}), stored=False)  # it learns again
    adapter = built.adapter
    assert adapter is not None
    for name, tensor in factors.items():
        adapter.factors[name].data.copy_(tensor)
    for parameter in built.head.values():
        parameter.requires_grad_(True)
    processes = join(train)
    try:
        processes.seed(built.recipe.seed)
        task = task_of(built.recipe)(built, processes)
        learner = Learner(task.trained(), task.head(), task.buffers(), train, scaler=processes.scaler)
        meter = Meter(processes, task.unit)
        with closing(task.batches(0, steps)) as batches:
            for step in range(1, steps + 1):
                take_step(task, train, learner, batches, processes, meter, step, last=step == steps)
        if bad := learner.not_finite():
            raise RunError(f"{bad} is NaN or Inf", where="--tune", hint="lower train.optimizer.lr")
        beside = {name: tensor.detach().cpu() for name, tensor in {**built.head, **built.also}.items()}
        head, also = ({name: beside.get(name, own[name]) for name in own} for own in (small.head, small.also))
        tuned = {name: tensor.detach().cpu() for name, tensor in adapter.factors.items()}
        return _small(replace(small, head=head, also=also), adapter, tuned)
    finally:
        processes.end()
