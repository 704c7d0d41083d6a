"""A learning-rate range test: the rate grows at every step, until the loss shows that it is too high.

Every step's loss is compared with that of the untrained weights on the same images, with the same random numbers:
what is left is what training did to it, and a small batch does as well as a large one.
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
from superlora_cli.training.loop import Task, passes
from superlora_cli.training.meter import Meter

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import TrainSection
    from superlora_cli.training.display import Display
    from superlora_cli.training.processes import Processes

STEPS, FIRST, PER_DECADE = 60, 1e-5, 8  # steps at most, their first rate, steps until it is ten times that
KEPT = 0.6  # of what the loss won or lost so far, at every step: an exponential mean
WARM_UP = 20  # steps until a head with a rate of its own has it; at once it makes the loss rise by itself
RISEN = 0.1  # part of the untrained loss that it has to be above it, to have blown up
BELOW = 20  # the rate that is proposed is so many times below the one where it blew up (docs/training.md)


def proposal(blown_up: float) -> float:
    """The rate that is proposed where the loss blew up at another, to two digits.

    >>> proposal(0.316228)
    0.016
    """
    return float(f"{blown_up / BELOW:.1e}")


@dataclass
class RangeTest:
    """What came of it, step by step.

    Attributes:
        rates: of every step.
        untrained: the loss of the weights at the start, on the step's images.
        changes: how much the loss before the step was above that, smoothed; NaN and Inf as they came.
    """

    rates: list[float] = field(default_factory=list)
    untrained: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    _sum: float = 0.0

    def add(self, rate: float, loss: float, untrained: float) -> None:
        """A step at `rate`, and both losses before it."""
        self.rates.append(rate)
        self.untrained.append(untrained)
        self._sum = KEPT * self._sum + (1 - KEPT) * (loss - untrained)
        self.changes.append(self._sum / (1 - KEPT ** len(self.rates)))

    @property
    def blown_up(self) -> bool:
        """Whether all that was won is lost, and more: higher rates have nothing to tell."""
        return not self.changes[-1] <= RISEN * fmean(self.untrained)  # NaN is no number to be below anything

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(rate, smoothed loss) as on images that are the same at every step; without a last one that is no number."""
        start = fmean(self.untrained)
        points = zip(self.rates, self.changes, strict=True)
        return [(rate, start + change) for rate, change in points if math.isfinite(change)]

    @property
    def proposed(self) -> float:
        """The rate to train at."""
        return proposal(self.rates[-1])


def range_test(task: Task, train: TrainSection, processes: Processes, display: Display) -> RangeTest:
    """Train with a rate that grows from `FIRST`, `PER_DECADE` steps a decade, until the loss blows up.

    What grows is what `train.optimizer.lr` sets: the rate of adapter or base, and of a new head that has none of its
    own. A head with a `head_lr` learns at that after `WARM_UP` steps.

    Raises:
        RunError: the loss has not blown up after `STEPS` steps.
    """
    constant = train.model_copy(update={"scheduler": SchedulerSection(), "ema": None})
    learner = Learner(task.trained(), task.head(), task.buffers(), constant, scaler=processes.scaler)
    start = learner.snapshot()
    groups, head_lr = learner.optimizer.param_groups, train.optimizer.head_lr
    found, meter = RangeTest(), Meter(processes)

    def untrained(batches: list[Any], step: int) -> float:
        with learner.having(start), torch.no_grad(), task.one_step():
            for batch in batches:
                with processes.autocast():
                    meter.add(task.loss(batch), task.images_in(batch), step)
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
            passes(task, train, learner, iter(own), processes, meter, step)
            processes.average(learner.gradients(), stop=False)
            learner.update(last=True)
            figures = meter.look()
            found.add(rate, figures.loss, before)
            display.step(step, figures, lr=rate)
            if found.blown_up:
                return found
    message = f"the loss has not risen up to a learning rate of {rate:.3g}: none can be proposed"
    raise RunError(message, where="train.optimizer", hint="is anything trained that the loss depends on?")
