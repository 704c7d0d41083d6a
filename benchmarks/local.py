"""The memory of a step while one group of layers is trained after another (`train.local`), beside the usual training.

    python benchmarks/local.py                                     # the table in docs/training.md
    python benchmarks/local.py vit_cifar100_lora --groups 4        # another recipe

Nothing is trained: the step runs on tensors without values (`training/memory.py`).
"""

from __future__ import annotations

import argparse

from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import load_recipe
from superlora_cli.tasks import task_of
from superlora_cli.training.local import Local
from superlora_cli.training.memory import step_memory
from superlora_cli.training.optim import make_optimizer


def measured(name: str, groups: int | None, turn: int = 0) -> dict[str, int]:
    """Bytes of a step by purpose: while one group has its turn, or with `groups` None as usual."""
    recipe = load_recipe(name, [] if groups is None else [f"train.local.groups={groups}"])
    built, train = build_for_training(recipe, weights=False), recipe.train
    local = Local.of(train, built.adapter)
    batch, loss = task_of(recipe).rehearsal(built)
    return step_memory(
        built.model, train, batch=batch, loss=loss, optimizer=lambda own: make_optimizer(train.optimizer, own, []),
        local=local, step=0 if local is None or not turn else local.ends[turn - 1],
    )  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="digits_lora")
    parser.add_argument("--groups", type=int, default=3)
    given = parser.parse_args()
    print("| trained | factors, gradients, optimizer | activations | peak |\n|---|---:|---:|---:|")
    rows = {"all layers": measured(given.recipe, None)}
    for turn in range(given.groups):
        rows[f"group {turn + 1} of {given.groups}"] = measured(given.recipe, given.groups, turn)
    for name, found in rows.items():
        print(f"| {name} | {found['adapter'] / 1e3:,.0f} kB | {found['activations'] / 1e6:,.1f} MB "
              f"| {found['total'] / 1e6:,.1f} MB |")  # fmt: skip


if __name__ == "__main__":
    main()
