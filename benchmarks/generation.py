"""From printed to handwritten digits, generated: table and picture of docs/generation.md (an embedded Fig. 8-10).

    python benchmarks/generation.py             # trains what is missing (3 seeds a recipe), writes table and picture
    python benchmarks/generation.py --only digits_unet_lora digits_unet_dense

Every run is `superlora train RECIPE seed=S train.threads=1`, then `superlora eval RUN --against digits:test --extractor
digits --num 300 --sampler dpm++ --guidance 3 --seed S`, at seed 0 also at the default guidance of 1.8. The runs lie in
runs/generation; results are kept in records/generation.jsonl, one run a line, and a run that is there already for
the same recipe and the same base is not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import statistics
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pages
from pictures import sheets
from PIL import Image
from recorded import Records, Row
from rich.console import Console

from superlora_cli.commands.measure import measure_run
from superlora_cli.commands.train import train_run
from superlora_cli.models.embedded import ASSETS, EMBEDDED
from superlora_cli.recipe.load import load_recipe, shipped_recipes
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder

RECORDS = Records("generation.jsonl", itemgetter("name", "digest", "seed", "guidance"))
RUNS = pages.ROOT / "runs" / "generation"
PAGE, PICTURE = pages.DOCS / "generation.md", pages.DOCS / "generation.png"
SEEDS = (0, 1, 2)
BASE = "glyphs_unet"
AGAINST = "digits:test"
SAMPLING: dict[str, Any] = {"num": 300, "sampler": "dpm++"}
GUIDANCE, WEAKER = 3.0, 1.8  # of the table; and the default, looked at with one seed
QUIET = Console(file=io.StringIO())
SHOWN = (BASE, "digits_unet_lorta5d", "digits_unet_lorta3d", "digits_unet_lora", "digits_unet_dense")
ACROSS = 4  # images of a class in the picture
COLUMNS = {"loss": "noise loss", "fid": "FID", "kid": "KID", "is_l1": "IS-l1", "msid": "MSID", "precision": "precision",
           "recall": "recall", "class_accuracy": "class accuracy"}  # fmt: skip


def names() -> list[str]:
    """The unadapted base, and the recipes that adapt it."""
    return [BASE, *(name for name in shipped_recipes() if name.startswith("digits_unet_"))]


def digest(name: str) -> str:
    """Digest of the base's weights and of a recipe without its comments."""
    recipe = "" if name == BASE else load_recipe(name).to_json()
    weights = (ASSETS / EMBEDDED[BASE].weights).read_bytes()
    return hashlib.sha256(weights + recipe.encode()).hexdigest()[:12]


def current() -> list[Row]:
    """The results on record for the current recipes and base."""
    digests = {name: digest(name) for name in names()}
    return [row for row in RECORDS.rows() if digests.get(row["name"]) == row["digest"] and row["guidance"] == GUIDANCE]


def folder_of(name: str, seed: int) -> Path:
    """The folder of a run and its images."""
    return RUNS / f"{name}-{seed}-{digest(name)}"


def work(name: str, seed: int) -> Row:
    """One run, trained and measured."""
    folder = folder_of(name, seed)
    row = {"name": name, "digest": digest(name), "seed": seed, "guidance": GUIDANCE}
    row |= {"parameters": 0, "seconds": 0.0, "loss": None}
    source = BASE
    if name != BASE:
        recipe = load_recipe(name, [f"seed={seed}", "train.threads=1"])
        with RunFolder(folder).opened() as run:
            if run.about().get("status") != "completed":
                run.clear()
                train_run(recipe, run, QUIET, join(recipe.train), quiet=True)
            result = run.about()
        row |= {"parameters": result["params"]["adapter"], "seconds": result["seconds"], "bytes": result["bytes"]}
        row |= {key: result["metrics"][key] for key in ("loss", "loss_before")}
        source = str(folder)
    found = measured(source, folder / "samples", seed, GUIDANCE)
    row |= {"sampling": found["generated"]["seconds"], "metrics": found["metrics"]}
    if seed == SEEDS[0]:
        row["weaker"] = measured(source, folder / "weaker", seed, WEAKER)["metrics"]
    return row


def measured(source: str, out: Path, seed: int, guidance: float) -> dict[str, Any]:
    """The output of `superlora eval SOURCE --against`."""
    asked = SAMPLING | {"seed": seed, "guidance": guidance, "extractor": "digits"}
    return measure_run(source, AGAINST, QUIET, ["train.threads=1"], out=out, force=True, **asked)


def summaries(rows: list[Row]) -> list[Row]:
    """A row per setting, by number of parameters: mean, minimum and maximum of every metric over the seeds."""
    before = next(row["loss_before"] for row in rows if row["name"] != BASE)
    found = []
    for name in names():
        own = list({row["seed"]: row for row in rows if row["name"] == name}.values())
        if not own:
            continue
        figures = {}
        for key in COLUMNS:
            values = [row["metrics"].get(key, before if name == BASE else row["loss"]) for row in own]
            figures[key] = (statistics.mean(values), min(values), max(values))
        about = {"name": name, "parameters": own[0]["parameters"], "seeds": len(own)}
        about["floor"] = statistics.mean(row["metrics"]["msid_floor"] for row in own)
        about["weaker"] = next((row["weaker"] for row in own if "weaker" in row), None)
        found.append(about | figures)
    return sorted(found, key=lambda row: row["parameters"])


def table(found: list[Row]) -> str:
    """In Markdown: means, and the spread of FID and of class accuracy."""
    titles = ["parameters", "seeds", *COLUMNS.values(), f"FID at guidance {WEAKER}", f"class accuracy at {WEAKER}"]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(titles)]
    for row in found:
        cells = []
        for key in COLUMNS:
            mean, low, high = row[key]
            spread = f" ({low:.3g}–{high:.3g})" if row["seeds"] > 1 and key in ("fid", "class_accuracy") else ""
            cells.append(f"{mean:.3g}{spread}")
        cells += [f"{row['weaker'][key]:.3g}" if row["weaker"] else "" for key in ("fid", "class_accuracy")]
        title = f"the base `{row['name']}`" if row["name"] == BASE else f"`{row['name']}`"
        lines.append(f"| {title} | {row['parameters']:,} | {row['seeds']} | " + " | ".join(cells) + " |")
    count = f"{SAMPLING['num']} images each, dpm++ with 25 steps, guidance {GUIDANCE:g}; means over the seeds"
    note = f"{count}, in brackets the least and the most; at guidance {WEAKER} seed {SEEDS[0]} alone. "
    note += f"MSID's noise floor is {found[0]['floor']:.2g}.\n"
    return "\n".join(lines) + f"\n\n{note}Made by `python benchmarks/generation.py`.\n"


def draw(found: list[Row]) -> None:
    """The images of seed 0 side by side: a row per class, four across for every setting."""
    rows, panels = {row["name"]: row for row in found}, {}
    for name in SHOWN:
        files = sorted((folder_of(name, SEEDS[0]) / "samples" / "images").glob("0*.png"))[: 10 * ACROSS]
        images = np.stack([np.asarray(Image.open(file)) for file in files])  # image i is of class i modulo 10
        label = "unadapted" if name == BASE else name.removeprefix("digits_unet_")
        mean, _, _ = rows[name]["fid"]
        title = f"{label}\n{rows[name]['parameters']:,} parameters\nFID {mean:.3g}"
        panels[title] = images.reshape(ACROSS, 10, *images.shape[1:]).swapaxes(0, 1)
    sheets(panels, PICTURE)


def places() -> pages.Places:
    """The generated parts of the page."""
    return {(PAGE, "results"): table(summaries(current())).removesuffix("\n")}


def main() -> None:
    """Train and measure missing runs; write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), help="what to train and measure")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="default: 0 1 2")
    asked = parser.parse_args()
    only: list[str] = asked.only
    for seed in asked.seeds:
        for name in only:
            known = (name, digest(name), seed, GUIDANCE) in RECORDS.known()
            if known and (seed != SEEDS[0] or name not in SHOWN or (folder_of(name, seed) / "samples").is_dir()):
                continue
            RECORDS.add(work(name, seed))
    found = summaries(current())
    if set(SHOWN) <= {row["name"] for row in found}:
        draw(found)
    pages.fill(places())
    print(table(found))


if __name__ == "__main__":
    main()
