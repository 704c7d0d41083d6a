"""A trace of a few steps, for chrome://tracing, Perfetto or TensorBoard."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from superlora_cli.training.run import RunFolder

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import TrainSection

WAIT, WARM_UP, RECORDED = 5, 1, 3  # steps


@contextmanager
def traced(run: RunFolder, train: TrainSection, start: int) -> Iterator[Callable[[], None]]:
    """If `train.profile` is set, record a few steps to OUT/trace.json.gz; call the yielded function after every step.

    If the run is too short, its last steps are recorded; if it has no steps left, none are.
    """
    left = train.length - start
    if not (train.profile and run.writes and left):
        yield lambda: None
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # it would report every missing GPU
    from torch import profiler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with a single step it cannot warm up
        schedule = profiler.schedule(
            wait=min(WAIT, max(0, left - WARM_UP - RECORDED)), warmup=min(WARM_UP, left - 1), active=RECORDED, repeat=1
        )
    path = run.path / "trace.json.gz"
    with profiler.profile(
        schedule=schedule,
        on_trace_ready=lambda recorded: recorded.export_chrome_trace(str(path)),
        record_shapes=True,
        profile_memory=True,
    ) as recorder:
        yield recorder.step
