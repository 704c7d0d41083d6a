"""Steps of `superlora train` in turns with those of loops written by hand, in one process."""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timing import CHUNK, Criterion, Run, Spread, Times, ratio, setting

from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import task_of
from superlora_cli.training.display import Display
from superlora_cli.training.loop import fit, ready
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder

ENGINE = "engine"
TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD of malloc.h


def measured(recipe: Recipe, loops: Callable[[Any], Mapping[str, Run]]) -> Times:
    """Seconds of every `CHUNK` steps of the engine, and of each of the `loops`, which are made from its task.

    The engine's step is all that happens from one step to the next; between two, each loop makes one. Nothing is
    evaluated or saved on the way.
    """
    keep_memory()
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


def keep_memory() -> None:
    """Let glibc keep what the main thread frees, as it does for other threads.

    Otherwise the engine, but not a loop in a thread of its own, gives memory back to the system in every step and has
    it mapped again: 4 % of a step of 16 sequences of the language model, whatever loop runs there.
    """
    with suppress(OSError, AttributeError):  # another system's C library
        ctypes.CDLL("libc.so.6").mallopt(TRIM_THRESHOLD, 2**31 - 1)


def compare(
    about: str | None, measure: Callable[[int, int, list[str]], Times], *, other: str, goal: float, unit: str
) -> None:
    """A command line that measures batches of several sizes and reports the ratios of the engine to another loop.

    Args:
        about: the script's docstring.
        measure: (steps, batch size, overrides of the recipe) → seconds of both.
        unit: what a batch consists of.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of each loop (default %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 16], help=f"{unit} a step (default 2 and 16)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    asked = parser.parse_args()
    words = [f"train.threads={asked.threads}", *asked.overrides]
    times = {batch: measure(asked.steps, batch, words) for batch in asked.batch}
    goals = {
        batch: Criterion(f"a step of {batch} {unit} ≤ {goal} × {other}", goal, ratio(seconds, ENGINE, other))
        for batch, seconds in times.items()
    }
    if asked.json:
        criteria = {batch: own.figures() for batch, own in goals.items()}
        print(json.dumps({"setting": setting(torch.device("cpu")), "seconds": times, "criteria": criteria}))
        return
    print(setting(torch.device("cpu")))
    for batch, own in goals.items():
        for name, seconds in times[batch].items():
            print(f"{batch:4} {unit}, {name:20} {Spread.of(seconds).median / CHUNK * 1000:8.2f} ms a step")
        print(own)
