"""A learning-rate range test: the rate grows with every step until the loss shows that it is too high.

The loss of every step is compared with that of the untrained weights on the same images, with the same random numbers.
The difference is due to training only, so small batches work as well as large ones.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from superlora_cli.errors import RunError
from superlora_cli.recipe.schema import SchedulerSection
from superlora_cli.training.learner import Learner
from superlora_cli.training.loop import Task, take_step
from superlora_cli.training.meter import Meter

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import TrainSection
    from superlora_cli.training.display import Display
    from superlora_cli.training.processes import Processes

STEPS, FIRST, PER_DECADE = 60, 1e-5, 8  # most steps, the first rate, steps per factor of ten
DECAY = 0.6  # of the exponential mean of the change of the loss
WARM_UP = 20  # steps until a head with its own rate reaches it; at once it would raise the loss by itself
RISEN = 0.1  # the loss has blown up when it exceeds the untrained loss by this share of it
LOST = 0.25  # or, where it never does, when it has risen again by this share of its fall
BELOW = 20  # the proposed rate is this many times smaller than the one at which it blew up (docs/training.md)


def proposal(blown_up: float) -> float:
    """The proposed rate, to two digits, given the rate at which the loss blew up.

    >>> proposal(0.316228)
    0.016
    """
    return float(f"{blown_up / BELOW:.1e}")


@dataclass
class RangeTest:
    """The course of the test.

    Attributes:
        rates: the rate of every step.
        untrained: the loss of the initial weights on the images of every step.
        changes: by how much the loss before every step exceeded that, smoothed; may be NaN or Inf.
    """

    rates: list[float] = field(default_factory=list)
    untrained: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    _sum: float = 0.0

    def add(self, rate: float, loss: float, untrained: float) -> None:
        """Add a step at `rate`, with both losses before it."""
        self.rates.append(rate)
        self.untrained.append(untrained)
        self._sum = DECAY * self._sum + (1 - DECAY) * (loss - untrained)
        self.changes.append(self._sum / (1 - DECAY ** len(self.rates)))

    @property
    def blown_up(self) -> bool:
        """Whether the loss is clearly above that of the untrained weights, so that higher rates are pointless."""
        return not self.changes[-1] <= RISEN * fmean(self.untrained)  # also true for NaN

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(rate, smoothed loss) as if every step had the same images; without points that are not finite."""
        start = fmean(self.untrained)
        points = zip(self.rates, self.changes, strict=True)
        return [(rate, start + change) for rate, change in points if math.isfinite(change)]

    @property
    def too_high(self) -> float | None:
        """The rate at which the loss blew up; None if it did not.

        A base that knows nothing of its task can hardly become worse than it was. There, it is the rate at which the
        loss, having fallen, had risen again by a part of that.
        """
        if self.blown_up and math.isfinite(self.changes[-1]):
            return self.rates[-1]
        lowest, fallen = 0.0, -RISEN * fmean(self.untrained)
        for rate, change in zip(self.rates, self.changes, strict=True):
            lowest = min(lowest, change)  # of those so far; NaN is no minimum
            if lowest < fallen and change > (1 - LOST) * lowest:
                return rate
        return self.rates[-1] if self.blown_up else None

    @property
    def proposed(self) -> float:
        """The proposed learning rate; only of a test with a rate that is too high."""
        assert self.too_high is not None
        return proposal(self.too_high)

    def doubt(self, usual: float | None) -> str | None:
        """Why the proposal is doubtful, if the loss rose so early that it is lower than any rate that was tried.

        Args:
            usual: the default rate; None if there is none.
        """
        if self.proposed >= FIRST:
            return None
        instead = "try some higher ones" if usual is None else f"try the default, {usual:g}, too"
        rose = f"the loss rose after {len(self.rates)} of {STEPS} steps"
        return f"the rate found, {self.proposed:g}, is doubtful, lower than any that was tried: {rose}; {instead}"


def range_test(task: Task, train: TrainSection, processes: Processes, display: Display) -> RangeTest:
    """Train with a rate that grows from `FIRST`, tenfold every `PER_DECADE` steps, until the loss blows up.

    This is the rate that `train.optimizer.lr` sets: that of the adapter or the base, and of a new head without its own.
    A head with a `head_lr` reaches that after `WARM_UP` steps. Afterwards, everything is as it was before.

    Raises:
        RunError: after `STEPS` steps, no rate was too high.
    """
    constant = train.at_rate(FIRST).model_copy(update={"scheduler": SchedulerSection(), "ema": None})
    learner = Learner(task.trained(), task.head(), task.buffers(), constant, scaler=processes.scaler)
    before, random = learner.state(), processes.random_states()
    try:
        return _test(task, train, learner, processes, display)
    finally:
        learner.put(before["tensors"])
        if processes.scaler:
            processes.scaler.load_state_dict(before["scaler"])
        processes.restore_random(random)


def _test(task: Task, train: TrainSection, learner: Learner, processes: Processes, display: Display) -> RangeTest:
    start = learner.snapshot()
    groups, head_lr = learner.optimizer.param_groups, train.optimizer.head_lr
    found, meter = RangeTest(), Meter(processes, task.unit)

    def untrained(batches: list[Any], step: int) -> float:
        with learner.having(start), torch.no_grad(), task.one_step():
            for batch in batches:
                with processes.autocast():
                    meter.add(task.loss(batch), task.amount(batch), step)
        return meter.look().loss

    with display, closing(task.batches(0, STEPS)) as batches:
        for step in range(1, STEPS + 1):
            rate = FIRST * 10 ** ((step - 1) / PER_DECADE)
            for group in groups:
                group["lr"] = rate
            if head_lr is not None and len(groups) > 1:
                groups[-1]["lr"] = head_lr * min(1.0, step / WARM_UP)
            with processes.alone():
                own = list(islice(batches, train.accumulate))
            random = processes.random_states()
            before = untrained(own, step)
            processes.restore_random(random)
            take_step(task, train, learner, iter(own), processes, meter, step, last=True)
            figures = meter.look()
            found.add(rate, figures.loss, before)
            display.step(step, figures, lr=rate)
            if found.blown_up:
                return found
    if found.too_high is not None:
        return found
    message = f"the loss did not rise up to a learning rate of {rate:.3g}, so none can be proposed"
    raise RunError(message, where="train.optimizer", hint="does the loss depend on anything that is trained?")
