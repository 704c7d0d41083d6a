"""The training loop: one for every task."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from superlora_cli.errors import InterruptedRunError, RunError, UsageError
from superlora_cli.training.checkpoints import complete_checkpoints, load_state, prune, save_checkpoint
from superlora_cli.training.display import Display
from superlora_cli.training.optim import make_optimizer, make_scheduler
from superlora_cli.training.run import RunFolder

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import EvalSection, TrainSection


class Task(Protocol):
    """What the loop needs to know of a task."""

    model: nn.Module

    def one_step(self) -> AbstractContextManager[None]:
        """Around the forward and backward passes of one optimizer step."""

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained besides the head: factors, or the base where there is no adapter."""

    def head(self) -> dict[str, nn.Parameter]:
        """The trained head's parameters, {} where it is frozen or the whole base is trained."""

    def batches(self, start: int, stop: int) -> Iterable[Any]:
        """Training batches number `start` ... `stop` − 1, the same whenever they are asked for."""

    def images_in(self, batch: Any) -> int:
        """Images in a batch."""

    def loss(self, batch: Any) -> Tensor:
        """The mean loss of a batch, a scalar."""

    def score(self) -> dict[str, float]:
        """Metrics on the split that the best step is chosen on."""

    def better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        """Whether `new` metrics beat `old` ones."""

    def exported(self, metrics: Mapping[str, Any]) -> dict[str, bytes]:
        """File name → bytes of the result as it stands in the model."""


@dataclass
class Progress:
    """Where a training stands: everything but weights and optimizer that a resumed run must know."""

    step: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0


def fit(
    task: Task,
    train: TrainSection,
    evaluation: EvalSection,
    run: RunFolder,
    accelerator: Accelerator,
    *,
    begin: Callable[[int], Display],
    resume: Path | None = None,
) -> Progress:
    """Train until `train.steps`, keep the best by the task's score, and leave it in the model.

    Args:
        begin: called with the step that training starts at, when all that can be wrong with the recipe has shown and
            before the run's folder is touched; makes the display.
        resume: a checkpoint to go on from.

    Raises:
        UsageError: torch refuses the optimizer or the schedule, or the checkpoint does not fit the recipe.
        RunError: NaN or Inf in the loss or the weights. InterruptedRunError: after a signal, when all is saved.
    """
    body, head = task.trained(), task.head()
    weights = body | head
    optimizer = make_optimizer(train.optimizer, list(body.values()), list(head.values()))
    at = Progress()
    if resume:
        state = load_state(resume)
        at = _restore(state, weights, optimizer)
        if at.step > train.steps:
            hint = "raise it, or start again with --force"
            raise UsageError(f"the checkpoint is at step {at.step}", where=f"train.steps={train.steps}", hint=hint)
    scheduler = make_scheduler(train.scheduler, optimizer, steps=train.steps, start=at.step)
    if resume:
        groups = optimizer.state_dict()["param_groups"]  # rates as the recipe says now, moments as they were
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        torch.set_rng_state(state["rng"])
    scaler = getattr(accelerator, "scaler", None)
    batches = iter(task.batches(at.step * train.accumulate, train.steps * train.accumulate))
    window = _Window(accelerator.device)

    def save() -> None:
        state = _state(at, weights, optimizer)
        save_checkpoint(run.checkpoints, at.step, state, task.exported(at.best))
        prune(run.checkpoints, keep=train.keep, protected=train.checkpoint_at)

    display = begin(at.step)
    run.truncate_metrics(at.step)
    with display, _signals() as stop:
        while at.step < train.steps:
            task.model.train()
            with task.one_step():
                for _ in range(train.accumulate):
                    batch = next(batches)
                    with accelerator.autocast():
                        loss = task.loss(batch)
                    share = loss / train.accumulate
                    (scaler.scale(share) if scaler else share).backward()
                    window.add(loss, task.images_in(batch), at.step + 1)
            if scaler:
                scaler.unscale_(optimizer)
            if train.clip_norm is not None:
                nn.utils.clip_grad_norm_(list(weights.values()), train.clip_norm)
            lr = optimizer.param_groups[0]["lr"]
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            at.step += 1
            if at.step < train.steps:
                scheduler.step()
            last = at.step == train.steps
            if last or at.step % train.log_every == 0:
                _check_finite(window, weights, at.step, lr, run)
                figures = window.close(at)
                run.record({"step": at.step, "loss": figures.loss, "lr": lr})
                display.step(at.step, loss=figures.loss, rate=figures.rate, lr=lr)
            if last or (evaluation.every and at.step % evaluation.every == 0):
                _check_finite(window, weights, at.step, lr, run)
                found = task.score()
                run.record({"step": at.step, "eval": found})
                display.say(f"step {at.step}  " + "  ".join(f"{name} {value:.4f}" for name, value in found.items()))
                if not at.best or task.better(found, at.best):
                    at.best_step, at.best = at.step, found
                    at.best_tensors = {name: p.detach().cpu().clone() for name, p in weights.items()}
                window.restart()
            due = train.checkpoint_every and at.step % train.checkpoint_every == 0
            if due or at.step in train.checkpoint_at or stop.asked or last:
                _check_finite(window, weights, at.step, lr, run)
                save()
                window.restart()
            if stop.asked and not last:
                raise InterruptedRunError(
                    f"stopped at step {at.step}, saved", where=str(run.path), hint=f"go on with --resume {run.path}"
                )
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(at.best_tensors[name])
    return at


def accelerator_for(train: TrainSection) -> Accelerator:
    """The device and precision that a recipe asks for.

    Raises:
        UsageError: a device that is not there.
    """
    from accelerate.state import AcceleratorState

    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "auto": True,
    }
    if not available[train.device]:
        raise UsageError(f"no {train.device} device here", where="train.device", hint="auto or cpu")
    if train.threads:
        torch.set_num_threads(train.threads)
    AcceleratorState._reset_state(reset_partial_state=True)  # one process may train twice
    precision = {"fp32": "no"}.get(train.precision, train.precision)
    accelerator = Accelerator(mixed_precision=precision, cpu=train.device == "cpu")
    if train.precision == "fp16" and accelerator.device.type == "cpu":
        raise UsageError("fp16 needs a GPU", where="train.precision", hint="bf16 or fp32")
    return accelerator


def latest_checkpoint(run: RunFolder) -> Path | None:
    """The newest whole checkpoint of a run, None where there is none."""
    found = complete_checkpoints(run.checkpoints)
    return found[-1][1] if found else None


def _state(at: Progress, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "progress": vars(at).copy(),
        "weights": {name: weight.detach().cpu() for name, weight in weights.items()},
        "optimizer": {"name": type(optimizer).__name__, **optimizer.state_dict()},
        "rng": torch.get_rng_state(),
    }


def _restore(state: Mapping[str, Any], weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Progress:
    stored = state["weights"]
    if {n: w.shape for n, w in stored.items()} != {n: w.shape for n, w in weights.items()}:
        raise UsageError(
            "the checkpoint holds other tensors than this recipe trains", hint="resume with its own recipe"
        )
    before, now = state["optimizer"]["name"], type(optimizer).__name__
    if before != now:
        raise UsageError(f"the checkpoint holds the state of {before}", where=f"train.optimizer.name={now}",
                         hint=f"resume with {before}")  # fmt: skip
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored[name])
    return Progress(**state["progress"])


@dataclass
class _Figures:
    loss: float
    rate: float


class _Window:
    """Loss and throughput since they were last looked at, kept on the device: one synchronisation a look."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        self.total, self.passes, self.images = torch.zeros((), device=self.device), 0, 0
        self.first_bad = torch.zeros((), dtype=torch.long, device=self.device)
        self.started = time.monotonic()

    def add(self, loss: Tensor, images: int, step: int) -> None:
        loss = loss.detach()
        self.total += loss
        bad = ~torch.isfinite(loss) & (self.first_bad == 0)
        self.first_bad = torch.where(bad, step, self.first_bad)
        self.passes += 1
        self.images += images
        self.last_step = step

    def close(self, at: Progress) -> _Figures:
        steps = max(1, self.passes)
        loss = self.total.item() / steps
        seconds = time.monotonic() - self.started
        at.images, at.seconds = at.images + self.images, at.seconds + seconds
        figures = _Figures(loss, self.images / max(seconds, 1e-9))
        self.restart()
        return figures


def _check_finite(window: _Window, weights: Mapping[str, Tensor], step: int, lr: float, run: RunFolder) -> None:
    first_bad = int(window.first_bad.item())
    if first_bad:
        raise _not_finite("the loss", first_bad, lr, run)
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise _not_finite(name, step, lr, run)


def _not_finite(what: str, step: int, lr: float, run: RunFolder) -> RunError:
    good = latest_checkpoint(run)
    hint = f"lower train.optimizer.lr; the last good checkpoint is {good}" if good else "lower train.optimizer.lr"
    return RunError(f"{what} is NaN or Inf at step {step}, learning rate {lr:.3g}", where=str(run.path), hint=hint)


class _Stop:
    asked = False


@contextmanager
def _signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM ask the loop to save and stop; a second SIGINT interrupts at once."""
    stop, before = _Stop(), {}

    def ask(number: int, frame: object) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread: signals are somebody else's
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
