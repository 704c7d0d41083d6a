"""The pictures of docs/reports.md: trains small runs, reports them, and photographs the page.

pip install -e '.[browser]'                            # and a Chromium on the PATH
python benchmarks/report.py --runs runs/digits         # half an hour on one CPU core; runs that are there are kept
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pages
from playwright.sync_api import sync_playwright

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


def superlora(*words: str | Path) -> None:
    """One command."""
    subprocess.run([sys.executable, "-m", "superlora_cli", *map(str, words)], check=True)


def train(folder: Path) -> None:
    """The runs that are missing."""
    settings = {f"{name}-s{seed}": [*words, f"seed={seed}"] for seed in SEEDS for name, words in CLASSIFIERS.items()}
    for name, words in {**settings, **{name: [name] for name in GENERATORS}}.items():
        if not (folder / name / "eval.json").exists():
            superlora("train", *words, "train.threads=1", "--out", folder / name, "--quiet", "--force")
    for name in GENERATORS:
        if not (folder / name / "samples" / "metrics.json").exists():
            superlora("eval", folder / name, *MEASURING)


def photograph(page: Path) -> None:
    """The beginning of the page, and the images of its last section."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 1100}, color_scheme="light")
        opened.goto(page.absolute().as_uri())
        opened.screenshot(path=pages.DOCS / "report.png")
        opened.locator(".grids").last.screenshot(path=pages.DOCS / "report-images.png")
        browser.close()


def main() -> None:
    """Train, report, photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/digits"), help="folder of the runs")
    folder: Path = parser.parse_args().runs
    train(folder)
    superlora("report", folder, "--against", folder / "digits_dense-s0")
    photograph(folder / "report.html")
    shutil.copy(
        folder / "report-figures" / "classification-glyphs_vit-on-digits-geometry.svg", pages.DOCS / "geometry.svg"
    )


if __name__ == "__main__":
    main()
