"""The cost of the training loop: a step of the quickstart in `superlora train` against the same step written by hand.

    python benchmarks/engine.py --threads 2

By hand is a loop of PyTorch on a model with the same adapter: forward, cross-entropy, backward, AdamW, OneCycleLR, on
images that lie ready as one tensor a batch. `+ loader` reads them with a plain DataLoader instead. The engine's step
is all that happens from one step to the next: reading and augmenting the batch, all the checks, every tenth step's log.

The three take turns step by step in one process; ratios are of ten steps each, with their median and quartiles.
"""

from __future__ import annotations

import argparse
import json
from itertools import cycle
from typing import Any

import torch
from timing import CHUNK, Criterion, Times, ratio, setting
from torch.nn import functional
from torch.utils.data import DataLoader
from turns import measured

from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import load_recipe
from superlora_cli.tasks.classification.task import Classification

GOAL = 1.15


class ByHand:
    """The training loop as one would write it without the engine."""

    def __init__(self, task: Classification, *, loader: bool) -> None:
        recipe = task.recipe
        built = build_for_training(recipe)
        assert built.adapter
        self.model, self.adapter = built.model.train(), built.adapter
        batches = DataLoader(task.splits.train, recipe.train.batch_size, shuffle=True, drop_last=True)
        self.batches = cycle(batches) if not loader else (batch for _ in cycle([0]) for batch in batches)
        self.batch = None if loader else next(self.batches)
        optimizer = recipe.train.optimizer
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=optimizer.lr, **optimizer.keywords)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=optimizer.lr, total_steps=recipe.train.steps + 1, **recipe.train.scheduler.keywords
        )

    def step(self) -> None:
        """One optimizer step."""
        images, labels = self.batch or next(self.batches)
        with self.adapter.one_step():
            functional.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()


def measure(steps: int, overrides: list[str]) -> Times:
    """Seconds of every `CHUNK` steps of each loop."""
    recipe = load_recipe("quickstart", [f"train.steps={steps}", *overrides])
    ways = {"by hand": False, "+ loader": True}
    return measured(recipe, lambda task: {name: ByHand(task, loader=loader).step for name, loader in ways.items()})


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    asked = parser.parse_args()
    times = measure(asked.steps, [f"train.threads={asked.threads}", *asked.overrides])
    criteria = [
        Criterion("engine / by hand, data ready", GOAL, ratio(times, "engine", "by hand")),
        Criterion("engine / by hand with a loader", GOAL, ratio(times, "engine", "+ loader")),
    ]
    if asked.json:
        found: dict[str, Any] = {"seconds": times, "criteria": [criterion.figures() for criterion in criteria]}
        print(json.dumps(found))
        return
    print(setting(torch.device("cpu")))
    for name, seconds in times.items():
        print(f"{name:10} {sorted(seconds)[len(seconds) // 2] / CHUNK * 1000:8.2f} ms a step")
    for criterion in criteria:
        print(criterion)


if __name__ == "__main__":
    main()
