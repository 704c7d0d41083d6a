"""The training loop, shared by all tasks."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from superlora_cli.errors import CannotResumeError, InterruptedRunError, PausedRunError, RunError
from superlora_cli.training.checkpoints import load_state
from superlora_cli.training.display import Display
from superlora_cli.training.learner import Learner
from superlora_cli.training.meter import Meter
from superlora_cli.training.processes import Processes
from superlora_cli.training.profiler import traced
from superlora_cli.training.relapse import relapse
from superlora_cli.training.run import RunFolder
from superlora_cli.training.signals import Stop, stop_signals

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import EvalSection, TrainSection
    from superlora_cli.training.local import Local


class Task(Protocol):
    """What the loop needs to know about a task.

    Attributes:
        unit: what throughput counts.
    """

    unit: ClassVar[str]

    @property
    def guessing(self) -> float:
        """The loss of a model that guesses at random."""

    def one_step(self) -> AbstractContextManager[None]:
        """A context for the forward and backward passes of one optimizer step, with the model in training mode."""

    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters except the head: the factors or, without an adapter, the base."""

    def head(self) -> dict[str, nn.Parameter]:
        """Parameters of the trained head; {} if it is frozen or the whole base is trained."""

    def local(self) -> Local | None:
        """The groups of layers that are trained one after another; None if all are trained together."""

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that a forward pass in training mode changes."""

    def batches(self, start: int, stop: int) -> Generator[Any, None, None]:
        """This process's batches of steps `start` ... `stop` − 1, `train.accumulate` per step; deterministic."""

    def amount(self, batch: Any) -> int:
        """The size of a batch, in `unit`."""

    def loss(self, batch: Any) -> Tensor:
        """The mean loss of a batch, a scalar."""

    def score(self) -> dict[str, float]:
        """Metrics on the split that selects the best step, the same in all processes."""

    def picture(self) -> bytes | None:
        """A PNG to look at beside the metrics of `score`, from the current weights; None if there is none."""

    def judged_by(self) -> str:
        """The data that `score` uses, in words."""

    def better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        """Whether the metrics `new` are better than `old`."""

    def not_finite(self) -> str | None:
        """The name of an update with NaN or Inf in spite of finite parameters; None if there is none."""

    def exported(self, metrics: Mapping[str, Any]) -> dict[str, bytes]:
        """File name → bytes of the result, from the current weights."""


@dataclass
class Progress:
    """The progress of training: what a resumed run must know besides the state of the `Learner`."""

    step: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0  # evaluations since the best one

    def is_over(self, train: TrainSection) -> bool:
        """Whether no step is left, or `train.patience` is exhausted."""
        return self.step == train.length or (train.patience is not None and self.waited >= train.patience)


def ready(
    task: Task, train: TrainSection, processes: Processes, resume: Path | None = None
) -> tuple[Learner, Progress]:
    """Prepare training, from scratch or from the checkpoint `resume`; nothing is written yet.

    Raises:
        UsageError: torch refuses the optimizer or the schedule. CannotResumeError: the checkpoint does not fit the
            recipe.
    """
    state = load_state(resume) if resume else None
    at = Progress(**state["progress"]) if state else Progress()
    if at.step > train.length:
        hint = "raise it, or start over with --force"
        raise CannotResumeError(f"the checkpoint is at step {at.step}", where=f"train.steps={train.length}", hint=hint)
    parts = task.trained(), task.head(), task.buffers()
    learner = Learner(*parts, train, scaler=processes.scaler, start=at.step, state=state, local=task.local())
    if state:
        processes.restore_random(state["random"])
    return learner, at


def fit(
    task: Task,
    train: TrainSection,
    evaluation: EvalSection,
    run: RunFolder,
    processes: Processes,
    learner: Learner,
    at: Progress,
    display: Display,
    *,
    until: int | None = None,
) -> Meter:
    """Train for `train.steps`, and leave the weights of the best step, by the task's score, in the model.

    With `train.patience`, training ends after that many evaluations without improvement. If the loss rose again, a
    warning is written to the run folder.

    Args:
        learner, at: from `ready`; `at` is updated.
        until: pause after this step, if it is not the last one.

    Raises:
        RunError: NaN or Inf in the loss or the weights. InterruptedRunError: after a signal, when everything is saved.
        PausedRunError: after the step `until`, likewise.
    """
    meter = Meter(processes, task.unit)
    run.truncate_metrics(at.step)

    def finite(bad_step: int | None, lr: float, *, thoroughly: bool) -> None:
        what = "the loss" if bad_step else learner.not_finite() or (task.not_finite() if thoroughly else None)
        if what:
            raise _not_finite(what, bad_step or at.step, lr, run)

    def save() -> None:
        random = processes.random_states()
        state = {"progress": vars(at), "random": random, **learner.state()}
        with learner.averaged():
            files = task.exported(at.best) if processes.is_main else {}
        processes.on_main(lambda: run.save(at.step, state, files, keep=train.keep, protected=train.checkpoint_at))

    def warn() -> None:
        if found := relapse(run.losses(), task.guessing):
            rate = f"the learning rate {train.optimizer.rate:g} is too high"
            file = shlex.quote(str(run.path / "recipe.yaml"))
            line = f"{found}: {rate}; lower train.optimizer.lr (superlora find-rate {file})"
            run.warn(line)
            display.say(f"warning: {line}")

    batches = task.batches(at.step, train.length)
    with display, stop_signals() as signal, closing(batches), traced(run, train, at.step) as next_step:
        meter.restart()
        while not at.is_over(train):
            last, lr = at.step + 1 == train.length, learner.lr
            stop = take_step(task, train, learner, batches, processes, meter, at.step + 1, last=last, signal=signal)
            at.step += 1
            next_step()

            logs = last or at.step % train.log_every == 0
            scores = last or bool(evaluation.every and at.step % evaluation.every == 0)
            due = bool(train.checkpoint_every and at.step % train.checkpoint_every == 0)
            pauses = at.step == until
            saves = last or stop or pauses or due or at.step in train.checkpoint_at
            if not (logs or scores or saves):
                continue
            if scores or saves:
                processes.average(learner.statistics(), stop=False)
            figures = meter.look()
            finite(figures.bad_step, lr, thoroughly=scores or saves)
            if logs:
                run.record(at.step, {"loss": figures.loss, "lr": lr}, figures)
                display.step(at.step, figures, lr=lr)
            if scores:
                with learner.averaged():
                    found, picture = task.score(), task.picture()
                    at.waited += 1
                    if not at.best or task.better(found, at.best):
                        at.best_step, at.best, at.best_tensors = at.step, found, learner.snapshot()
                        at.waited = 0
                run.record(at.step, {"eval": found})
                if picture is not None:
                    run.show(at.step, picture)
                words = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
                display.say(f"step {at.step}  {task.judged_by()}  {words}")
            ends = at.is_over(train)
            if saves or ends:
                save()
            if (stop or pauses) and not ends:
                warn()
                hint = f"continue with --resume {shlex.quote(str(run.path))}"
                error = InterruptedRunError if stop else PausedRunError
                raise error(f"stopped at step {at.step}, saved", where=str(run.path), hint=hint)
            meter.restart()
        if at.step < train.length:
            line = f"ended at step {at.step}: {at.waited} evaluations without improvement since step {at.best_step}"
            run.log(line)
            display.say(line)
        warn()
    learner.put(at.best_tensors)
    return meter


def take_step(
    task: Task,
    train: TrainSection,
    learner: Learner,
    batches: Iterator[Any],
    processes: Processes,
    meter: Meter,
    step: int,
    *,
    last: bool,
    signal: Stop | None = None,
) -> bool:
    """One optimizer step: forward and backward passes, their gradients averaged over the processes, the update.

    Args:
        batches: from which the step takes `train.accumulate`.
        step: its number, from 1.
        last: no further step follows.

    Returns:
        Whether `signal` asks any of the processes to stop.
    """
    with task.one_step():
        for _ in range(train.accumulate):
            with meter.waiting(), processes.alone():
                batch = next(batches)
            with processes.autocast():
                loss = task.loss(batch)
            learner.backward(loss / train.accumulate)
            meter.add(loss, task.amount(batch), step)
    stop = processes.average(learner.gradients(), signal is not None and signal.asked)
    learner.update(last=last)
    return stop


def _not_finite(what: str, step: int, lr: float, run: RunFolder) -> RunError:
    good = run.latest_checkpoint()
    hint = f"lower train.optimizer.lr; the last good checkpoint is {good}" if good else "lower train.optimizer.lr"
    return RunError(f"{what} is NaN or Inf at step {step}, learning rate {lr:.3g}", where=str(run.path), hint=hint)
