"""Accuracy against parameters on the handwritten digits: the README's table and picture, and what bf16 costs.

    python benchmarks/digits.py                 # trains what is missing (3 seeds a recipe), writes table and picture
    python benchmarks/digits.py --only quickstart digits_dense

Every run is `superlora train RECIPE seed=S train.threads=1`; results are kept in records/digits.jsonl, one run a
line, and a run that is there already for the same recipe is not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import statistics
import tempfile
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import pages
from pictures import canvas, name_points, save
from recorded import Records, Row
from rich.console import Console

from superlora_cli.commands.train import train_run
from superlora_cli.recipe.load import load_recipe, shipped_recipes
from superlora_cli.recipe.schema import Recipe
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder

RECORDS = Records("digits.jsonl", itemgetter("recipe", "digest", "seed"))
README, PICTURE = pages.ROOT / "README.md", pages.DOCS / "digits.svg"
SEEDS = (0, 1, 2)
PRECISIONS = {"quickstart, bf16": ["quickstart", "train.precision=bf16"]}
MADE = "Made by `python benchmarks/digits.py`."


def recipes() -> list[str]:
    """The recipes of the embedded task: those that classify digits, not those that generate them."""
    named = (name for name in shipped_recipes() if name == "quickstart" or name.startswith("digits_"))
    return [name for name in named if load_recipe(name).task == "classification"]


def loaded(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name, or one of `PRECISIONS`."""
    recipe, *own = PRECISIONS.get(name, [name])
    return load_recipe(recipe, [*own, *overrides])


def digest(name: str) -> str:
    """Digest of a recipe without its comments: results of another recipe do not count."""
    return hashlib.sha256(loaded(name).to_json().encode()).hexdigest()[:12]


def current() -> list[Row]:
    """The runs on record for the current recipes."""
    digests = {name: digest(name) for name in (*recipes(), *PRECISIONS)}
    return [row for row in RECORDS.rows() if digests.get(row["recipe"]) == row["digest"]]


def train(name: str, seed: int) -> Row:
    """One run, in a temporary folder."""
    recipe = loaded(name, [f"seed={seed}", "train.threads=1"])
    with tempfile.TemporaryDirectory() as folder, RunFolder(Path(folder) / "run").opened() as run:
        result = train_run(recipe, run, Console(file=io.StringIO()), join(recipe.train), quiet=True)
    metrics = result["metrics"]
    row = {"recipe": name, "digest": digest(name), "seed": seed, "parameters": result["params"]["adapter"]}
    row |= {"head": result["params"]["head"]} if result["params"]["head"] else {"before": metrics["accuracy_before"]}
    row |= {"accuracy": metrics["accuracy"], "bytes": result["bytes"]}
    return row | {"validation": metrics["val_accuracy"], "seconds": result["seconds"]}


def summaries(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """A row per recipe: means over its seeds, by number of parameters."""
    found = []
    for name in names:
        own = {row["seed"]: row for row in rows if row["recipe"] == name}
        if own:
            accuracies = [row["accuracy"] for row in own.values()]
            first = next(iter(own.values()))
            mean, low, high = statistics.mean(accuracies), min(accuracies), max(accuracies)
            found.append(first | {"mean": mean, "low": low, "high": high, "seeds": len(accuracies)})
    return sorted(found, key=lambda row: (row["parameters"], row["recipe"]))


def table(found: list[Row]) -> str:
    """The README's table, in Markdown."""
    lines = ["| recipe | parameters | file, bytes | test accuracy | of 3 seeds |", "|---|---:|---:|---:|---:|"]
    lines.append(f"| the base, unadapted | 0 | | {unadapted(found):.3f} | |")
    for row in found:
        spread, head = f"{row['low']:.3f} – {row['high']:.3f}", f" + head {row['head']:,}" if "head" in row else ""
        count = f"{row['parameters']:,}{head}"
        lines.append(f"| `{row['recipe']}` | {count} | {row['bytes']:,} | {row['mean']:.3f} | {spread} |")
    return "\n".join(lines) + f"\n\n{MADE}"


def unadapted(found: list[Row]) -> float:
    """Accuracy of the unadapted base, with its own head."""
    return next(float(row["before"]) for row in found if "before" in row)


def draw(found: list[Row]) -> None:
    """Accuracy against parameters, as SVG whose bytes depend only on the numbers."""
    figure = canvas(8, 5)
    axes = figure.add_subplot()
    shown = [row for row in found if row["parameters"]]
    for row in shown:
        marker = "s" if row["recipe"] in ("digits_lora", "digits_dense") else "o"
        spread = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        axes.errorbar(row["parameters"], row["mean"], yerr=spread, fmt=marker, capsize=3)
    lines = [(unadapted(found), "unadapted")]
    lines += [(row["mean"], "a new head alone") for row in found if not row["parameters"]]
    for height, label in lines:
        axes.axhline(height, linestyle=":", color="grey")
        axes.text(found[-1]["parameters"], height + 0.006, label, ha="right", fontsize=8, color="grey")
    axes.set(xscale="log", xlabel="trained parameters", ylabel="test accuracy, handwritten digits")
    axes.grid(alpha=0.3)
    axes.margins(x=0.1, y=0.08)
    names = [(row["parameters"], row["mean"], row["recipe"].removeprefix("digits_")) for row in shown]
    bars = [(row["parameters"], row[end]) for row in shown for end in ("low", "high")]
    name_points(axes, names, avoid=bars, fontsize=8)
    save(figure, PICTURE)


def precisions() -> str:
    """In Markdown: the quickstart in float32 and bf16."""
    lines = ["| | seeds | test accuracy | of the seeds |", "|---|---:|---:|---:|"]
    for row in summaries(current(), ["quickstart", *PRECISIONS]):
        words = " ".join(PRECISIONS.get(row["recipe"], [row["recipe"]]))
        spread = f"{row['low']:.3f} – {row['high']:.3f}"
        lines.append(f"| `superlora train {words}` | {row['seeds']} | {row['mean']:.3f} | {spread} |")
    return "\n".join([*lines, "", MADE])


def places() -> pages.Places:
    """The generated parts of README and docs/training.md."""
    found = summaries(current(), recipes())
    return {(README, "results"): table(found), (pages.DOCS / "training.md", "bf16"): precisions()}


def main() -> None:
    """Train what is missing and write table and picture."""
    names = [*recipes(), *PRECISIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="recipes to train")
    only: list[str] = parser.parse_args().only
    for name in only:
        for seed in SEEDS:
            if (name, digest(name), seed) not in RECORDS.known():
                RECORDS.add(train(name, seed))
    found = summaries(current(), recipes())
    draw(found)
    pages.fill(places())
    print(table(found))


if __name__ == "__main__":
    main()
