"""Pictures and table of docs/reports.md: trains small runs, reports them, and photographs the page.

pip install -e '.[browser]'                            # and a Chromium on the PATH
python benchmarks/report.py --runs runs/digits         # half an hour on one CPU core; runs that are there are kept
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

import pages
from recorded import Records, Row

from superlora_cli.reporting.nearness import MEASURES

RECORDS = Records("report.jsonl", itemgetter("method", "configuration"))
WIDTH = 64  # of the adapted weights, on both sides
SEEDS = (0, 1)
CLASSIFIERS: dict[str, list[str]] = {
    "quickstart": ["quickstart"],
    "digits_dense": ["digits_dense"],
    "digits_lora": ["digits_lora"],
    "digits_2d": ["digits_2d"],
    "digits_lorta3d": ["digits_lorta3d"],
    "digits_lorta3d_r2": ["digits_lorta3d", "adapter.rank=2"],
    "digits_lorta5d": ["digits_lorta5d"],
    "digits_lokr": ["digits_lokr"],
    "digits_linear_v2": ["digits_linear_v2"],
    "digits_linear_v2_25": ["digits_linear_v2", "adapter.ratio=0.25"],
    "digits_linear_v2_05": ["digits_linear_v2", "adapter.ratio=0.05"],
}
GENERATORS = ("digits_unet_dense", "digits_unet_lora", "digits_unet_lorta3d")
MEASURING = ("--against", "digits:test", "--extractor", "digits", "--num", "250", "--steps", "25")


def superlora(*words: str | Path) -> str:
    """The stdout of a command."""
    command = [sys.executable, "-m", "superlora_cli", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(folder: Path) -> None:
    """Train missing runs."""
    settings = {f"{name}-s{seed}": [*words, f"seed={seed}"] for seed in SEEDS for name, words in CLASSIFIERS.items()}
    for name, words in {**settings, **{name: [name] for name in GENERATORS}}.items():
        if not (folder / name / "eval.json").exists():
            superlora("train", *words, "train.threads=1", "--out", folder / name, "--quiet", "--force")
    for name in GENERATORS:
        if not (folder / name / "samples" / "metrics.json").exists():
            superlora("eval", folder / name, *MEASURING)


def photograph(page: Path) -> None:
    """Pictures of the top of the page, and of the images in its last section."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 1100}, color_scheme="light")
        opened.goto(page.absolute().as_uri())
        opened.screenshot(path=pages.DOCS / "report.png")
        opened.locator(".grids").last.screenshot(path=pages.DOCS / "report-images.png")
        browser.close()


def rows(section: dict[str, Any]) -> list[Row]:
    """For each configuration in a section with geometry: its measures, as means over weights and runs."""
    accuracies = {one["row"]: one["mean"] for one in section["measures"][0]["values"]}
    found = []
    for row in section["rows"]:
        weights = [
            w for run in section["geometry"]["runs"] if run["row"] == row["row"] for w in run["weights"].values()
        ]
        if not weights:
            continue
        means = {key: round(statistics.mean(weight[key] for weight in weights), 4) for key in MEASURES}
        chance = round(statistics.mean(math.sqrt(weight["vectors"] / WIDTH) for weight in weights), 4)
        about = {"method": row["method"], "configuration": row["configuration"], "parameters": row["params"]}
        found.append({**about, "accuracy": accuracies[row["row"]], **means, "chance": chance})
    return found


def table(found: list[Row]) -> str:
    """In Markdown."""
    titles = " | ".join(MEASURES.values())
    lines = [f"| | | parameters | accuracy | {titles} | d_L, d_R by chance |", "|---|---|" + "---:|" * 6]
    for row in found:
        cells = [row["method"], row["configuration"], f"{row['parameters']:,}", f"{row['accuracy']:.3f}"]
        cells += [f"{row[key]:.2f}" for key in (*MEASURES, "chance")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def places() -> pages.Places:
    """The generated part of the page."""
    return {(pages.DOCS / "reports.md", "geometry"): table(RECORDS.rows())}


def main() -> None:
    """Train, report, photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/digits"), help="folder of the runs")
    folder: Path = parser.parse_args().runs
    train(folder)
    done = json.loads(superlora("report", folder, "--against", folder / "digits_dense-s0", "--json"))
    (section,) = (section for section in done["sections"] if "geometry" in section)
    RECORDS.write(rows(section))
    pages.fill(places())
    photograph(folder / "report.html")
    shutil.copy(
        folder / "report-figures" / "classification-glyphs_vit-on-digits-geometry.svg", pages.DOCS / "geometry.svg"
    )


if __name__ == "__main__":
    main()
