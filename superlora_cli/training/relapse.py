"""Detects training that lost what it had learned: with too high a learning rate, the loss need not become NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

FEWEST, PART = 10, 1 / 20  # a mean of the loss is over at least this many steps, and this share of all steps
RISEN = 1.15  # times its lowest value: anything less is noise of a few batches
KNOWING = 0.95  # times the loss of guessing: a model with a lower loss has learned something


class Point(NamedTuple):
    """A mean of the training loss over the last steps up to `step`."""

    step: int
    loss: float


def relapse(losses: Sequence[tuple[int, float]], guessing: float) -> str | None:
    """A warning if the loss rose half of the way back to guessing and has not recovered, else None.

    Half of the way is the geometric mean of its lowest value and the loss of guessing. A loss that never was better
    than guessing and rose means that what the base knew is lost.

    Args:
        losses: (step, loss) as recorded, each the mean over the steps since the previous one.
        guessing: the loss of a model that guesses at random.

    >>> falling = [(step, 2.0 / step) for step in range(10, 110, 10)]
    >>> relapse(falling, 2.3)
    >>> relapse([*falling, (110, 1.9), (120, 1.2)], 2.3)
    'the training loss fell to 0.02 by step 100, rose to 1.9 by step 110 and ends at 1.2 (guessing: 2.3)'
    """
    low = peak = end = Point(0, KNOWING * guessing)
    for end in _means(losses):
        if end.loss <= low.loss:
            low = peak = end
        elif end.loss > peak.loss:
            peak = end
    much = max(RISEN * low.loss, math.sqrt(low.loss * guessing))
    if peak.loss <= much or end.loss <= (RISEN * low.loss if low.step else low.loss):
        return None
    if not low.step:
        return f"the training loss ends at {end.loss:.3g}, no better than guessing ({guessing:.3g})"
    path = f"fell to {low.loss:.3g} by step {low.step}, rose to {peak.loss:.3g} by step {peak.step}"
    return f"the training loss {path} and ends at {end.loss:.3g} (guessing: {guessing:.3g})"


def _means(losses: Sequence[tuple[int, float]]) -> list[Point]:
    """Means over the last few losses, at every step that has that many."""
    if not losses:
        return []
    apart = losses[-1][0] / len(losses)  # steps
    width = max(1, round(max(FEWEST, PART * losses[-1][0]) / apart))
    values = [loss for _, loss in losses]
    return [Point(losses[i - 1][0], fmean(values[i - width : i])) for i in range(width, len(losses) + 1)]
