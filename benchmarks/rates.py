"""How good the rate is that `superlora find-rate` proposes: beside a grid of rates, on the embedded tasks.

    python benchmarks/rates.py                  # runs what is missing, fills the table in docs/training.md
    python benchmarks/rates.py --only SGD       # settings whose name has one of these in it
    python benchmarks/rates.py --list           # all settings

A setting is a recipe with an optimizer and a head. It is trained for 150 steps (seed 0) at the rate that is proposed,
and at a grid of two rates a decade, which goes on where its end is the best. Results are kept in records/rates.jsonl,
one a line, and what is there for the same recipe is not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

import pages
from recorded import Records, Row
from rich.console import Console

from superlora_cli.commands.find_rate import find_rate
from superlora_cli.commands.train import train_run
from superlora_cli.errors import RunError
from superlora_cli.recipe.load import load_recipe
from superlora_cli.recipe.schema import Recipe
from superlora_cli.training import rates
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder

RECORDS = Records("rates.jsonl", itemgetter("digest"))
COMMON = ["train.steps=150", "eval.every=null", "train.checkpoint_every=null", "train.threads=1"]
ADAMW = ["train.optimizer={name: AdamW, lr: 1.0, weight_decay: 0.0}"]
SGD = ["train.optimizer={name: SGD, lr: 1.0, momentum: 0.9}",
       "train.scheduler={name: OneCycleLR, pct_start: 0.1, cycle_momentum: false}"]  # fmt: skip
VARIANTS = ("lora", "lorta3d", "lokr", "2d", "onehot")
SETTINGS: dict[str, list[str]] = {
    **{f"{name}, AdamW": [f"digits_{name}", *ADAMW] for name in VARIANTS},
    **{f"{name}, SGD": [f"digits_{name}", *SGD] for name in VARIANTS},
    **{f"{name}, new head, AdamW": [f"digits_{name}", "model.head=new", *ADAMW, "train.optimizer.head_lr=0.003"]
       for name in ("lora", "lorta3d")},
    **{f"{name}, new head, SGD": [f"digits_{name}", "model.head=new", *SGD, "train.optimizer.head_lr=0.05"]
       for name in ("lora", "lorta3d")},
}  # fmt: skip
GRID = [float(f"{digit}e{power}") for power in range(-5, 3) for digit in (1, 3)]
FIRST = {"AdamW": (0.01, 0.3), "SGD": (0.03, 1.0)}  # the part of the grid that is always run
TEST = [rates.STEPS, rates.FIRST, rates.PER_DECADE, rates.DECAY, rates.RISEN]


def recipe(setting: str, rate: float) -> Recipe:
    """A setting's recipe at a rate."""
    name, *overrides = SETTINGS[setting]
    return load_recipe(name, [*overrides, *COMMON, f"train.optimizer.lr={rate:.6g}"])


def digest(setting: str, rate: float | None) -> str:
    """Of the recipe at a rate; without one, of the recipe and the range test."""
    text = recipe(setting, rate or 1.0).to_json() + ("" if rate else json.dumps(TEST))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def result(setting: str, rate: float | None, find: Callable[[], Row]) -> Row:
    """The result on record; if there is none, the one that is found now."""
    own = digest(setting, rate)
    if (row := RECORDS.known().get(own)) is None:
        RECORDS.add(row := {"setting": setting, "digest": own, **find()})
    return row


def proposed(setting: str) -> float:
    """The rate that is proposed for a setting."""

    def find() -> Row:
        return {"blown_up": find_rate(recipe(setting, 1.0), Console(file=io.StringIO()))["curve"][-1][0]}

    return rates.proposal(result(setting, None, find)["blown_up"])


def accuracy(setting: str, rate: float) -> float:
    """Test accuracy of a setting at a rate, 0 where the run ended in NaN."""

    def find() -> Row:
        made = recipe(setting, rate)
        try:
            with tempfile.TemporaryDirectory() as folder, RunFolder(Path(folder) / "run").opened() as run:
                found = train_run(made, run, Console(file=io.StringIO()), join(made.train), quiet=True)
        except RunError as error:
            return {"rate": rate, "accuracy": 0.0, "error": str(error)}
        return {"rate": rate, "accuracy": found["metrics"]["accuracy"]}

    return float(result(setting, rate, find)["accuracy"])


def run(setting: str) -> None:
    """All of a setting."""
    accuracy(setting, proposed(setting))
    low, high = (GRID.index(rate) for rate in FIRST["SGD" if "SGD" in setting else "AdamW"])
    while True:
        found = [accuracy(setting, rate) for rate in GRID[low : high + 1]]
        best = low + found.index(max(found))
        if low < best < high:
            return
        low, high = (low, high + 1) if best == high else (low - 1, high)


def table() -> str:
    """In Markdown: what is on record of every setting."""
    lines = ["| setting | accuracy at each rate | blown up by | proposed | accuracy |", "|---|---|---:|---:|---:|"]
    rows = RECORDS.known()
    for setting in SETTINGS:
        tried = {row["rate"]: row["accuracy"] for row in rows.values() if row["setting"] == setting and "rate" in row}
        if not tried or any(digest(setting, rate) not in rows for rate in tried):  # of another recipe
            continue
        grid = " · ".join(f"{rate:g}: {tried[rate]:.3f}" for rate in sorted(tried))
        test = rows.get(digest(setting, None))
        rate = rates.proposal(test["blown_up"]) if test else None
        shown = (f"{test['blown_up']:.2g}", f"{rate:g}") if test else ("", "")
        found = f"{tried[rate]:.3f}" if rate in tried else ""
        lines.append(f"| {setting} | {grid} | {' | '.join(shown)} | {found} |")
    return "\n".join([*lines, "", "Made by `python benchmarks/rates.py`."])


def places() -> pages.Places:
    """What docs/training.md shows."""
    return {(pages.DOCS / "training.md", "rates"): table()}


def main() -> None:
    """Run what is missing and fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="PART", help="settings with one of these in the name"
    )
    parser.add_argument("--list", action="store_true", help="name the settings and stop")
    arguments = parser.parse_args()
    chosen = [name for name in SETTINGS if any(part in name for part in arguments.only)]
    if arguments.list:
        print("\n".join(chosen))
        return
    for setting in chosen:
        run(setting)
        pages.fill(places())
    print(table())


if __name__ == "__main__":
    main()
