"""Whether a training lost what it had learned: under a rate that is too high a loss need not end in NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

FEWEST, PART = 10, 1 / 20  # steps, and part of all steps, that a mean of the loss is taken over at least
RISEN = 1.15  # times its lowest: less than that is the noise of a few batches
KNOWING = 0.95  # of the loss of guessing: a loss that is below it has learned something


class Point(NamedTuple):
    """A mean of the training loss over the steps up to one."""

    step: int
    loss: float


def relapse(losses: Sequence[tuple[int, float]], guessing: float) -> str | None:
    """What became of the loss, in words, where it rose half of the way back to guessing and has not recovered.

    Half of the way is the geometric mean of its lowest value and of what guessing gives. One that was worse than
    guessing and is no better now has lost what the base knew.

    Args:
        losses: (step, loss) as they are recorded, each the mean over the steps since the one before.
        guessing: the loss of a model that knows nothing.

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
    """Means over the last few of the losses, at every step that has that many."""
    if not losses:
        return []
    apart = losses[-1][0] / len(losses)  # steps
    width = max(1, round(max(FEWEST, PART * losses[-1][0]) / apart))
    values = [loss for _, loss in losses]
    return [Point(losses[i - 1][0], fmean(values[i - width : i])) for i in range(width, len(losses) + 1)]
