"""Steps of `superlora train` in turns with those of loops written by hand, in one process."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from timing import CHUNK, Run, Times

from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import task_of
from superlora_cli.training.display import Display
from superlora_cli.training.loop import fit, ready
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder

ENGINE = "engine"


def measured(recipe: Recipe, loops: Callable[[Any], Mapping[str, Run]]) -> Times:
    """Seconds of every `CHUNK` steps of the engine, and of each of the `loops`, which are made from its task.

    The engine's step is all that happens from one step to the next; between two, each loop makes one. Nothing is
    evaluated or saved on the way.
    """
    quiet = recipe.train.model_copy(update={"checkpoint_every": None})
    recipe = recipe.model_copy(update={"train": quiet, "eval": recipe.eval.model_copy(update={"every": None})})
    processes = join(recipe.train)
    task: Any = task_of(recipe)(build_for_training(recipe), processes)
    others, own_step = loops(task), task.one_step
    seconds: Times = {name: [] for name in (ENGINE, *others)}
    began: list[float] = []

    @contextmanager
    def one_step() -> Iterator[None]:
        if began:
            seconds[ENGINE].append(time.perf_counter() - began.pop())
            for name, step in others.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
        began.append(time.perf_counter())
        with own_step():
            yield

    task.one_step = one_step
    with tempfile.TemporaryDirectory() as folder, RunFolder(Path(folder) / "run").opened() as run:
        display = Display(Console(file=io.StringIO()), steps=recipe.train.length, start=0, quiet=True)
        fit(task, recipe.train, recipe.eval, run, processes, *ready(task, recipe.train, processes), display)
    kept = {name: of[CHUNK - 1 :] for name, of in seconds.items()}  # the first steps warm up
    chunks = len(kept[ENGINE]) // CHUNK
    return {name: [sum(of[i * CHUNK : (i + 1) * CHUNK]) for i in range(chunks)] for name, of in kept.items()}
