"""One training run, from a recipe to a finished run folder."""

from __future__ import annotations

import os
import shlex
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from superlora_cli.adapter.activations import MEANING
from superlora_cli.commands.resuming import as_started, differences
from superlora_cli.data.known import kind_of
from superlora_cli.data.splits import SPLITS
from superlora_cli.errors import InterruptedRunError
from superlora_cli.files import json_text
from superlora_cli.opening.build import Built, build_for_training
from superlora_cli.opening.results import TRAINED_IN
from superlora_cli.progress import doing, hushed
from superlora_cli.recipe.defaults import default_rate
from superlora_cli.recipe.overrides import flat
from superlora_cli.recipe.schema import Recipe
from superlora_cli.recipe.yaml import dump_yaml
from superlora_cli.tasks import TASKS, task_of
from superlora_cli.tasks.reading import check_held_out, settled
from superlora_cli.tasks.teaching import bytes_of
from superlora_cli.tasks.work import Work
from superlora_cli.training.display import Display
from superlora_cli.training.local import Local
from superlora_cli.training.loop import fit, ready
from superlora_cli.training.memory import step_memory
from superlora_cli.training.optim import make_optimizer
from superlora_cli.training.processes import Processes
from superlora_cli.training.rates import STEPS, range_test
from superlora_cli.training.run import RunFolder, environment
from superlora_cli.training.trackers import check_trackers, start_trackers


def dry_run(recipe: Recipe) -> dict[str, Any]:
    """What a run would train and how much memory it would need, found without weights, data or that much memory.

    Raises:
        UsageError: model, targets, knobs, image size or optimizer are wrong or do not go together.
    """
    built = build_for_training(recipe, weights=False)
    data = kind_of(recipe.data.name) if TASKS[recipe.task].has_classes else None  # others judge by training data, too
    if data and (sizes := data.sizes(settled(recipe).data)):
        check_held_out(sizes, recipe)
    train = recipe.train
    summary: dict[str, Any] = {
        "status": "dry-run",
        "model": built.base.call,
        **({"image_size": built.base.image_size} if built.base.image_size else {}),
        "params": built.params,
        "steps": train.steps,
        TASKS[recipe.task].batched: (
            None if train.steps is None else train.steps * train.batch_size * train.accumulate
        ),
        **({} if train.epochs is None else {"epochs": train.epochs}),
    }
    if built.adapter:
        plan = built.adapter.plan
        summary["targets"] = {
            "weights": len(plan.targets),
            "elements": plan.elements,
            "names": [target.name for target in built.adapter.targets],
        }
        summary["units"] = [
            {"count": len(bucket.members) * bucket.shape.terms, "shape": unit.sides, "params": unit.params}
            for bucket in plan.buckets
            for unit in bucket.shape.units
        ]
    if built.also:
        summary["also"] = {"tensors": len(built.also), "params": sum(tensor.numel() for tensor in built.also.values())}
    if built.base.note:
        summary["note"] = built.base.note
    summary["memory"] = _memory(built)  # last, because it leaves the model unusable
    return summary


def _memory(built: Built) -> dict[str, int]:
    """Memory of training in bytes, by purpose."""
    train = built.recipe.train
    optimizer = train.at_rate(0.0).optimizer  # no rate has been found yet where it is to be
    task = task_of(built.recipe)
    batch, loss = task.rehearsal(built)
    return step_memory(
        built.model, train, batch=batch, loss=loss, optimizer=lambda body: make_optimizer(optimizer, body, []),
        local=Local.of(train, built.adapter), evaluates=task.rehearsed_evaluation(built),
        beside=bytes_of(train.teacher) if train.teacher else 0,
    )  # fmt: skip


def train_run(
    recipe: Recipe,
    run: RunFolder,
    console: Console,
    processes: Processes,
    *,
    resume: Path | None = None,
    until: int | None = None,
    quiet: bool = False,
    told: Sequence[str] = (),
) -> dict[str, Any]:
    """Train `recipe` in the opened folder `run`: from the checkpoint `resume`, or from scratch in a cleared folder.

    The folder is not touched before model, data, optimizer and checkpoint are checked.

    Args:
        until: pause after this step, if it is not the last one.
        told: lines that log.txt begins with, or goes on with.

    Returns:
        status, run, adapter (or model), params, found_rate (with `lr: find`), steps, ended_early (with
        `train.patience`), metrics, images or texts (per split), selected_on, seconds, images_per_second (or another
        unit), seconds_per_step, data_wait (a fraction), peak_memory (bytes), bytes (of the file), and notes (on the
        data) and warnings, if any.

    Raises:
        SuperLoraError: whatever ended the run; once training has begun, run.json records it too.
    """
    about: dict[str, Any] = {}
    try:
        with hushed(quiet):
            result = _train(recipe, run, console, processes, about, resume, until, quiet, told)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and about:
            again = f"continue with --resume {shlex.quote(str(run.path))}"
            hint = again if run.latest_checkpoint() else "no checkpoint was written yet"
            error = InterruptedRunError("interrupted", where=str(run.path), hint=hint)
        if about:  # else the folder is untouched
            run.log(str(error))
            status = "interrupted" if isinstance(error, InterruptedRunError) else "failed"
            run.describe({**about, "status": status, "error": str(error)})
        raise error from None
    finally:
        processes.end()
    run.describe({**about, **result})
    run.log("completed")
    return result


def _train(
    recipe: Recipe,
    run: RunFolder,
    console: Console,
    processes: Processes,
    about: dict[str, Any],
    resume: Path | None,
    until: int | None,
    quiet: bool,
    told: Sequence[str],
) -> dict[str, Any]:
    started = time.monotonic()
    recipe = as_started(recipe, run) if resume else settled(recipe)
    trackers = check_trackers(recipe.output.trackers)
    quiet = quiet or not processes.is_main
    task, params = _opened(recipe, console, processes, quiet=quiet)
    counts = {name: len(task.splits.named(name)) for name in SPLITS}
    check_held_out(counts, task.recipe)
    # With a new head, the unadapted model guesses: there is no accuracy "before" to report.
    unadapted: dict[str, float] = {}
    if task.built.adapter and not task.built.head:
        with doing(console, "testing the unadapted model", quiet=quiet):
            unadapted = task.evaluate("test")

    found, doubt = (_found_before(task, run), None) if resume else _started(task, console, quiet=quiet)
    rate = {} if found is None else {"found_rate": found}
    recipe = task.recipe
    learner, at = ready(task, recipe.train, processes, resume)
    first = [*told, *(differences(run, task, processes, at) if resume else [])]  # nothing is written before this
    display = Display(console, steps=recipe.train.length, start=at.step, quiet=quiet)
    run_id = run.about().get("id", "") if resume else ""
    run.sweep() if resume else run.clear()
    noted = {"notes": [*task.splits.notes]} if task.splits.notes else {}
    if doubt:
        run.warn(doubt)
        display.say(f"warning: {doubt}")
    about.update(status="running", id=run_id or uuid.uuid4().hex, recipe=recipe.to_dict(), params=params,
                 environment=environment() | processes.describe(), data=task.splits.fingerprint,
                 **{TRAINED_IN: os.getcwd()}, **rate, **noted)  # fmt: skip
    run.write("recipe.yaml", dump_yaml(recipe.to_dict()))
    run.describe(about)
    if trackers and run.writes:
        start_trackers(processes.accelerator, trackers, run, config=flat(recipe.to_dict()), run_id=about["id"],
                       start=at.step)  # fmt: skip
    for line in (*first, *_told(task, params, found)):
        run.log(line)
        display.say(line)
    meter = fit(task, recipe.train, recipe.eval, run, processes, learner, at, display, until=until)
    with doing(console, "testing the best step", quiet=quiet):
        test, beside = task.judged("test")
    metrics: dict[str, Any] = dict(test)
    if unadapted:
        metrics[f"{task.measure}_before"] = before = unadapted[task.measure]
        if before != test[task.measure] and task.better(unadapted, test):
            found_by = f"superlora find-rate {run.path / 'recipe.yaml'}"
            line = (
                f"step {at.best_step}, the best, is worse than the unadapted model: {task.measure} "
                f"{test[task.measure]:.4g}, {before:.4g} before; lower train.optimizer.lr ({found_by})"
            )
            run.warn(line)
            display.say(f"warning: {line}")
    metrics |= {f"val_{task.measure}": at.best[task.measure], "best_step": at.best_step}
    ((name, content),) = task.exported(metrics).items()
    run.write(name, content)
    evaluated = {"task": recipe.task, "metrics": test, "n": counts["test"]}
    run.write("eval.json", json_text(evaluated))
    for other, text in beside.items():
        run.write(other, text)
    return {
        "status": "completed",
        "run": str(run.path),
        name.partition(".")[0]: str(run.path / name),
        "params": params,
        **rate,
        "steps": at.step,
        **({} if recipe.train.patience is None else {"ended_early": at.step < recipe.train.length}),
        "metrics": metrics,
        TASKS[recipe.task].elements: counts,
        "selected_on": recipe.eval.select,
        "bytes": len(content),
        "seconds": round(time.monotonic() - started, 1),
        **meter.totals(),
        **noted,
        **run.warned(),
    }


def _opened(recipe: Recipe, console: Console, processes: Processes, *, quiet: bool) -> tuple[Work, dict[str, int]]:
    """The model and the data of a recipe, and numbers of parameters, of the whole model if it is sharded."""
    with doing(console, f"building {recipe.model.name}", quiet=quiet):
        built = build_for_training(recipe)
    processes.seed(recipe.seed)
    params = built.params
    with doing(console, f"reading {recipe.data.name}", quiet=quiet):
        return task_of(recipe)(built, processes), params


def _started(task: Work, console: Console, *, quiet: bool) -> tuple[float | None, str | None]:
    """Start a new run: what the first batches say of its adapter, and the rate that it trains at, if it is to find
    one, and why that is doubtful; None if not."""
    task.begin()
    train = task.recipe.train
    if not train.optimizer.finds:
        return None, None
    display = Display(console, steps=STEPS, start=0, quiet=quiet)
    test = range_test(task, train, task.processes, display)
    task.recipe = task.recipe.model_copy(update={"train": train.at_rate(test.proposed)})
    return test.proposed, test.doubt(default_rate(task.recipe))


def _found_before(task: Work, run: RunFolder) -> float | None:
    """The rate that a resumed run found; None if it did not, or another was set since."""
    found: float | None = run.about().get("found_rate")
    return found if found == task.recipe.train.optimizer.lr else None


def _told(task: Work, params: dict[str, int], found: float | None) -> Iterator[str]:
    """What to know of a run as it starts, a line each."""
    built, recipe = task.built, task.recipe
    yield f"{recipe.model.name} on {recipe.data.name}: {params['adapter'] or params['base']:,} parameters"
    if built.adapter and built.adapter.config.activates:
        yield MEANING.format(built.adapter.config.activation)
    if found is not None:
        yield f"learning rate {found:g}, found by a range test"
    if local := task.local():
        yield local.told
    if task.teacher:
        yield task.teacher.told
    yield from filter(None, (built.base.note, *task.splits.notes))
