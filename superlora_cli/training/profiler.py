"""A trace of a few steps, for chrome://tracing, Perfetto or TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from superlora_cli.training.run import RunFolder

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import TrainSection

WAIT, WARM_UP, RECORDED = 5, 1, 3  # steps


@contextmanager
def traced(run: RunFolder, train: TrainSection, start: int) -> Iterator[Callable[[], None]]:
    """Where `train.profile` asks for it, records a few steps to OUT/trace.json.gz; call what it gives after every step.

    Of a run too short for all of them, the last steps are recorded.
    """
    if not (train.profile and run.writes):
        yield lambda: None
        return
    from torch import profiler

    left = train.steps - start
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
