"""What `superlora tune` finds in a quarter of an hour, beside what a user has without it.

    python benchmarks/tune.py                    # searches what is missing, with two workers; fills docs/tuning.md
    python benchmarks/tune.py --only "512 parameters"
    python benchmarks/tune.py --fill             # the page alone

On the embedded task: budgets of 128 and 512 parameters and of 153 bytes, beside what `count-params --budget` (or
`--bytes`) recommends, which is the first trial of each search. On images in folders, shapes drawn here: the budget is
the size of the adapter that `init` writes, whose recipe is trained with the same seeds. What was chosen is compared
on test images, which the search does not see. Records are in records/tune.jsonl.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import pages
from PIL import Image, ImageDraw
from recorded import Records, Row
from rich.console import Console

from superlora_cli.commands.init import starting_recipe
from superlora_cli.commands.train import train_run
from superlora_cli.recipe.load import load_recipe
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder
from superlora_cli.tuning.prepare import prepare

RECORDS, PAGE = Records("tune.jsonl", itemgetter("search")), pages.DOCS / "tuning.md"
RUNS = Path("runs") / "tune"
SHAPES = ("disc", "ring", "square", "frame", "triangle", "cross", "bars", "dots")
SEARCHES = {"128 parameters": 128, "512 parameters": 512, "153 bytes": 153, "shapes in folders": 0}


def shapes(folder: Path, train: int = 50, test: int = 50) -> Path:
    """Images of shapes of any size, place and grey, on grounds with noise, in a folder for each class."""
    import numpy as np

    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in SHAPES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                _shape(name, draw).save(folder / split / name / f"{number:03}.png")
    return folder


def _shape(name: str, draw: Any) -> Image.Image:
    import numpy as np

    size = 32
    ground = draw.integers(0, 120) + draw.normal(0, 25, (size, size))
    image = Image.fromarray(ground.clip(0, 255).astype("uint8"))
    pen, grey = ImageDraw.Draw(image), int(draw.integers(150, 256))
    half = int(draw.integers(6, 13))
    x, y = (int(value) for value in draw.integers(half + 1, size - half - 1, 2))
    box, thin = (x - half, y - half, x + half, y + half), max(2, half // 3)
    if name in ("disc", "ring"):
        pen.ellipse(box, fill=grey if name == "disc" else None, outline=grey, width=thin)
    elif name in ("square", "frame"):
        pen.rectangle(box, fill=grey if name == "square" else None, outline=grey, width=thin)
    elif name == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=grey)
    elif name == "cross":
        pen.line((x - half, y - half, x + half, y + half), fill=grey, width=thin)
        pen.line((x - half, y + half, x + half, y - half), fill=grey, width=thin)
    elif name == "bars":
        for offset in range(-half, half + 1, max(3, half // 2)):
            pen.line((x + offset, y - half, x + offset, y + half), fill=grey, width=1)
    else:
        for across in (-half + 2, 0, half - 2):
            for down in (-half + 2, 0, half - 2):
                pen.point([(x + across + i, y + down + j) for i in (0, 1) for j in (0, 1)], fill=grey)
    return Image.fromarray(np.asarray(image))


def searched(what: str, minutes: float) -> Row:
    """One search, and what came of it."""
    name, overrides, before = "digits_lorta3d", ["train.threads=1", "train.steps=300"], None
    most = SEARCHES[what]
    if what == "shapes in folders":
        name, overrides = str(RUNS / "shapes.yaml"), ["train.threads=1", "data.workers=0"]
        RUNS.mkdir(parents=True, exist_ok=True)
        start = starting_recipe("glyphs_vit", shapes(RUNS / "shapes"), Path(name))
        Path(name).write_text(start.text, encoding="utf-8")
        before, most = _trained(name, overrides)
    began, used = time.monotonic(), _cpu()
    found = prepare(
        name, overrides, most, in_bytes="bytes" in what, space=None, seeds=3, trials=None, minutes=minutes,
        out=RUNS / what.replace(" ", "-"),
    ).search(Console(stderr=True), workers=2, ray=None, quiet=False)  # fmt: skip
    first = next((one for one in found["finalists"] if one["trial"] == 0), None)
    return {
        "search": what,
        "trials": found["trials"],
        "minutes": round((time.monotonic() - began) / 60, 1),
        "cpu_minutes": round((_cpu() - used) / 60, 1),
        "best": _of(found["best"]),
        "recommended": first and _of(first),
        "init": before,
        "importances": {key: round(share, 2) for key, share in found["importances"].items()},
    }


def _trained(name: str, overrides: Sequence[str]) -> tuple[Row, int]:
    """The recipe as it is, with three seeds, and the number of its parameters."""
    metrics: dict[str, list[float]] = {"val_accuracy": [], "accuracy": []}
    params = 0
    for seed in range(3):
        recipe = load_recipe(name, [*overrides, f"seed={seed}"])
        with RunFolder(RUNS / "init" / str(seed)).opened() as run:
            found = train_run(recipe, run, Console(quiet=True), join(recipe.train), quiet=True)
        params = found["params"]["adapter"]
        for key, values in metrics.items():
            values.append(found["metrics"][key])
    return {"form": "what init writes", "params": params, **metrics}, params


def _cpu() -> float:
    """Seconds of all cores so far, of this process and of those that it has ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _of(one: Row) -> Row:
    kept = {key: one["metrics"][key] for key in ("val_accuracy", "accuracy")}
    return {**{key: one[key] for key in ("trial", "form", "settings", "params", "bytes")}, **kept}


def places() -> pages.Places:
    """The table of docs/tuning.md."""
    lines = ["| search | | parameters | validation | test, three seeds |", "|---|---|---:|---:|---|"]
    for what, row in RECORDS.known().items():
        for heading, one in (
            ("recommended", row["recommended"]),
            ("as `init` writes it", row["init"]),
            ("found", row["best"]),
        ):
            if one is not None:
                seeds = ", ".join(f"{value:.3f}" for value in one["accuracy"])
                validation, test = statistics.mean(one["val_accuracy"]), statistics.mean(one["accuracy"])
                form = f": {one['form']}" if heading == "found" else ""
                lines.append(
                    f"| {what} | {heading}{form} | {one['params']:,} | {validation:.3f} | {test:.3f} ({seeds}) |"
                )
    lines.append("")
    for what, row in RECORDS.known().items():
        counts = row["trials"]
        lines.append(
            f"- {what}: {row['minutes']:g} minutes with two workers, {row['cpu_minutes']:g} of computing; "
            f"{counts['finished']} trials finished, {counts['stopped']} stopped early, {counts['failed']} failed."
        )
    return {(PAGE, "searches"): "\n".join(lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SEARCHES), default=list(SEARCHES))
    parser.add_argument("--minutes", type=float, default=15.0, help="for each search (default 15)")
    parser.add_argument("--fill", action="store_true", help="fill the page, and search nothing")
    chosen = parser.parse_args()
    for what in () if chosen.fill else chosen.only:
        if what not in RECORDS.known():
            RECORDS.add(searched(what, chosen.minutes))
    if PAGE.exists():
        pages.fill(places())


if __name__ == "__main__":
    main()
