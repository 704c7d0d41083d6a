"""From printed to handwritten digits, by prompts: table and picture of docs/text-to-image.md.

    python benchmarks/text_to_image.py --workers 2           # runs what is missing, writes table and picture
    python benchmarks/text_to_image.py --rates 0.01 0.1      # the recipes at other rates than their own
    python benchmarks/text_to_image.py --fill                # only writes them

Every run is `superlora train RECIPE seed=S train.threads=1`, then `superlora eval RUN --against digits:test --extractor
digits --num 500 --guidance 3 --steps 20`: an image for the caption of every test image. Results are kept in
records/text_to_image.jsonl, one run a line, and a run that is there for the same recipe and base is not repeated.
A recipe's rate is the one with the lowest loss on the validation images, averaged over the seeds.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pages
import torch
from pictures import sheets
from PIL import Image
from recorded import Records, Row, key_of, processes
from rich.console import Console

from superlora_cli.commands.measure import measure_run
from superlora_cli.commands.train import train_run
from superlora_cli.models.embedded import ASSETS
from superlora_cli.recipe.load import load_recipe, shipped_recipes
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder

RUNS = pages.ROOT / "runs" / "text-to-image"
PAGE, PICTURE = pages.DOCS / "text-to-image.md", pages.DOCS / "text-to-image-digits.png"
SEEDS = (0, 1, 2)
BASE = "glyphs_text"
SAMPLING: dict[str, Any] = {"num": 500, "guidance": 3.0, "steps": 20, "batch_size": 50}
METRICS = ("fid", "kid", "class_accuracy")
ACROSS = 4  # images of a digit in the picture
QUIET = Console(file=io.StringIO())


class Job(NamedTuple):
    """A recipe, or the base by its name; with its own rate, or another."""

    name: str
    lr: float | None
    seed: int

    @property
    def folder(self) -> Path:
        return RUNS / f"{self.name}-{self.lr}-{self.seed}"

    @property
    def key(self) -> str:
        """What makes it that run."""
        return key_of(setting(self), self.seed)


RECORDS = Records("text_to_image.jsonl", lambda row: key_of(row["setting"], row["seed"]))


def recipes() -> list[str]:
    return [name for name in shipped_recipes() if name.startswith("digits_text_")]


def setting(job: Job) -> dict[str, Any]:
    """What a run's result depends on: the recipe without its seed, and the base's weights."""
    about = json.loads((ASSETS / f"{BASE}.json").read_text())
    found = {"base": about["sha256"]["unet/diffusion_pytorch_model.safetensors"][:12], "sampling": SAMPLING}
    if job.name == BASE:
        return found
    recipe = json.loads(load_recipe(job.name, [] if job.lr is None else [f"train.optimizer.lr={job.lr}"]).to_json())
    return found | {"recipe": {key: value for key, value in recipe.items() if key not in ("seed", "output")}}


def work(job: Job) -> Row:
    """Train, generate and measure."""
    row = {"name": job.name, "seed": job.seed, "setting": setting(job), "parameters": 0, "validation": None}
    row["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    source = BASE
    if job.name != BASE:
        overrides = [f"seed={job.seed}", "train.threads=1"]
        overrides += [] if job.lr is None else [f"train.optimizer.lr={job.lr}"]
        recipe = load_recipe(job.name, overrides)
        with RunFolder(job.folder).opened() as run:
            run.clear()
            train_run(recipe, run, QUIET, join(recipe.train), quiet=True)
            result = run.about()
        row |= {"parameters": result["params"]["adapter"], "seconds": result["seconds"], "bytes": result["bytes"],
                "lr": recipe.train.optimizer.lr, "loss": result["metrics"]["loss"],
                "loss_before": result["metrics"]["loss_before"]}  # fmt: skip
        logged = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
        row["validation"] = min(line["eval"]["loss"] for line in logged if "eval" in line)
        source = str(job.folder)
    asked = SAMPLING | {"seed": job.seed, "extractor": "digits"}
    keys, out = ["train.threads=1", "data.name=digits"], job.folder / "samples"
    found = measure_run(source, "digits:test", QUIET, keys, out=out, force=True, **asked)
    return row | {"metrics": {name: found["metrics"][name] for name in METRICS}}


def summaries(known: Mapping[str, Row]) -> list[Row]:
    """A row for the base and for each recipe at its own rate: mean, least and most over the seeds."""
    found = []
    for name in (BASE, *recipes()):
        own = [row for row in (known.get(Job(name, None, seed).key) for seed in SEEDS) if row]
        if not own:
            continue
        spread = {}
        for key in ("loss", *METRICS):
            values = [row["metrics"].get(key, row.get(key)) for row in own]
            spread[key] = None if None in values else (statistics.mean(values), min(values), max(values))
        found.append({"name": name, "parameters": own[0]["parameters"], "seeds": len(own), **spread})
    return sorted(found, key=lambda row: row["parameters"])


def table(found: Sequence[Row], before: float) -> str:
    """In Markdown."""
    lines = ["| | parameters | test loss | FID | KID | read as the prompt's digit |", "|---|---:|---:|---:|---:|---:|"]
    for row in found:
        loss = f"{before:.4f}" if row["loss"] is None else f"{row['loss'][0]:.4f}"
        name = "the base" if row["name"] == BASE else f"`{row['name']}`"
        fid, kid, accuracy = (row[key] for key in METRICS)
        cells = [f"{row['parameters']:,}", loss, f"{fid[0]:.1f} ({fid[1]:.1f}–{fid[2]:.1f})", f"{kid[0]:.3f}",
                 f"{accuracy[0]:.3f} ({accuracy[1]:.3f}–{accuracy[2]:.3f})"]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rates(known: Mapping[str, Row]) -> str:
    """The mean validation loss of every recipe at every rate on record, in Markdown."""
    tried = sorted({row["lr"] for row in known.values() if row["name"] != BASE})
    lines = ["| | " + " | ".join(f"{rate:g}" for rate in tried) + " |", "|---|" + "---:|" * len(tried)]
    for name in recipes():
        cells = []
        for rate in tried:
            losses = [row["validation"] for seed in SEEDS if (row := known.get(Job(name, rate, seed).key))]
            cells.append(f"{statistics.mean(losses):.4f}" if losses else "")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: Sequence[Row]) -> None:
    """The images of seed 0 side by side: a row per digit, four across for every setting."""
    panels = {}
    for row in found:
        folder = Job(row["name"], None, SEEDS[0]).folder / "samples"
        shown = json.loads((folder / "manifest.json").read_text())["images"]
        by_prompt: dict[str, list[str]] = {}
        for name, about in shown.items():
            by_prompt.setdefault(about["prompt"], []).append(name)
        order = sorted(by_prompt, key=lambda prompt: DIGITS.index(prompt.split()[-1]))
        label = "unadapted" if row["name"] == BASE else row["name"].removeprefix("digits_text_")
        title = f"{label}\n{row['parameters']:,} parameters\nFID {row['fid'][0]:.3g}"
        names = [by_prompt[prompt][:ACROSS] for prompt in order]
        panels[title] = np.array([[np.asarray(Image.open(folder / "images" / name)) for name in row] for row in names])
    sheets(panels, PICTURE)


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def places() -> pages.Places:
    """The generated parts of the page."""
    known = RECORDS.known()
    before = next(row["loss_before"] for row in known.values() if row["name"] != BASE)
    return {(PAGE, "digits"): table(summaries(known), before), (PAGE, "rates"): rates(known)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rates", nargs="*", type=float, default=[], help="besides the recipes' own")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--fill", action="store_true", help="only write table and picture")
    asked = parser.parse_args()
    jobs = [Job(BASE, None, seed) for seed in asked.seeds]
    jobs += [Job(name, rate, seed) for seed in asked.seeds for name in recipes() for rate in (*asked.rates, None)]
    if not asked.fill:
        with processes(asked.workers) as pool:
            RECORDS.make(work, {job.key: (job,) for job in jobs}, pool)
    found = summaries(RECORDS.known())
    if all((Job(row["name"], None, SEEDS[0]).folder / "samples").is_dir() for row in found):
        draw(found)
    pages.fill(places())
    print(table(found, 0.0))


if __name__ == "__main__":
    main()
