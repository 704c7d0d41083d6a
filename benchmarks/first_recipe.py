"""What `superlora init` writes, on bases it was not tuned for, beside the same recipe that trains the head alone.

    for name in swin convnext resnet; do superlora train benchmarks/bases/$name.yaml --out runs/bases/$name; done
    python benchmarks/first_recipe.py                                             # runs what is missing, fills the page
    python benchmarks/first_recipe.py --model local-dir:FOLDER --images CLOTHES --image-size 56 --steps 100
    python benchmarks/first_recipe.py --fill                                      # the page alone

A small Swin, ConvNeXt and ResNet that have seen printed digits get 600 images of handwritten ones in folders; with
`--model` and `--images` any model and folder. `init` writes the recipe; nothing of it is changed but the size of the
batches, and the number of steps where asked. Runs are kept in records/first_recipe.jsonl.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from contextlib import chdir
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import pages
from PIL import Image
from recorded import Records, Row
from rich.console import Console
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from superlora_cli.commands.init import starting_recipe
from superlora_cli.commands.train import train_run
from superlora_cli.models.build import build
from superlora_cli.recipe.load import load_recipe
from superlora_cli.recipe.schema import ModelSection
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder

RECORDS = Records("first_recipe.jsonl", itemgetter("base", "way", "batch"))
BASES, BATCHES, WAYS = ("swin", "convnext", "resnet"), (16, 32, 64, 128), ("what init writes", "the head alone")
PAGE = pages.DOCS / "rates.md"
TRAIN, TEST = 600, 500  # images of handwritten digits


class Subject(NamedTuple):
    """What a recipe is written for."""

    name: str
    model: str
    images: Path
    image_size: int | None = None
    steps: int | None = None


def small(folder: Path, runs: Path) -> list[Subject]:
    """The small bases as timm's local folders, and the handwritten digits as PNG files."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[: TRAIN + TEST], digits.target, strict=False)):
        place = folder / "digits" / ("train" if number < TRAIN else "test") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9375).astype("uint8")).save(place / f"{number:04}.png")
    found = []
    for name in BASES:
        recipe, own = load_recipe(Path(__file__).parent / "bases" / f"{name}.yaml"), folder / name
        section = ModelSection(name=recipe.model.name, pretrained=False, kwargs=recipe.model.kwargs)
        made = build(section, classes=10, image_size=recipe.data.image_size)
        own.mkdir()
        save_file(load_file(runs / name / "model.safetensors"), own / "model.safetensors")
        size, mean, std = [3, made.image_size, made.image_size], list(made.mean), list(made.std)
        config = {"input_size": size, "mean": mean, "std": std, "classifier": made.model.pretrained_cfg["classifier"],
                  "first_conv": made.model.pretrained_cfg["first_conv"]}  # fmt: skip
        arguments = {key: value for key, value in made.arguments.items() if key != "num_classes"}
        about = {
            "architecture": made.architecture,
            "num_classes": 10,
            "model_args": arguments,
            "pretrained_cfg": config,
        }
        (own / "config.json").write_text(json.dumps(about))
        found.append(Subject(name, f"local-dir:{own}", folder / "digits"))
    return found


def train(subject: Subject, way: str, batch: int) -> Row:
    """What came of one run."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        file = Path("own.yaml")
        start = starting_recipe(subject.model, subject.images, file, image_size=subject.image_size)
        file.write_text(start.text, encoding="utf-8")
        wanted = [f"train.batch_size={batch}", "train.threads=1", "data.workers=0"]
        wanted += [f"train.steps={subject.steps}"] if subject.steps else []
        wanted += ["adapter={method: none}"] if way == WAYS[1] else []
        recipe = load_recipe(file, wanted)
        with RunFolder(Path("run")).opened() as run:
            done = train_run(recipe, run, Console(file=io.StringIO()), join(recipe.train), quiet=True)
    counts = {what: done["params"][what] for what in ("adapter", "head")}
    return {"base": subject.name, "way": way, "batch": batch, "steps": recipe.train.steps, **counts,
            "validation": done["metrics"]["val_accuracy"], "accuracy": done["metrics"]["accuracy"]}  # fmt: skip


def places() -> pages.Places:
    """The table of docs/rates.md."""
    rows = RECORDS.known()
    lines = ["| base | trained | adapter | head | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |"]
    lines.append("|---|---|---:|---:|" + "---:|" * len(BATCHES))
    for base in dict.fromkeys(base for base, _, _ in rows):
        for way in WAYS:
            own = [rows.get((base, way, batch)) for batch in BATCHES]
            one = next((row for row in own if row), None)
            if one:
                cells = [f"{row['accuracy']:.3f}" if row else "" for row in own]
                counts = f"{one['adapter']:,} | {one['head']:,}"
                lines.append(f"| {base}, {one['steps']} steps | {way} | {counts} | {' | '.join(cells)} |")
    return {(PAGE, "first"): "\n".join(lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/bases"), help="where the small bases were trained")
    parser.add_argument("--model", help="any other model, as init takes it")
    parser.add_argument("--name", default="vit_s", help="what the table calls it")
    parser.add_argument("--images", type=Path, help="a folder of images for it")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--fill", action="store_true", help="fill the page, and train nothing")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        if options.fill:
            subjects = []
        elif options.model:
            subjects = [
                Subject(options.name, options.model, options.images.absolute(), options.image_size, options.steps)
            ]
        else:
            subjects = small(Path(folder), options.runs.absolute())
        known = RECORDS.known()
        for subject in subjects:
            for batch in options.batches:
                for way in WAYS:
                    if (subject.name, way, batch) not in known:
                        RECORDS.add(train(subject, way, batch))
    pages.fill(places())
    print(*places().values(), sep="\n")


if __name__ == "__main__":
    main()
