"""Steps, memory and transforms on a GPU, at the paper's size: `python benchmarks/gpu.py`.

- steps: a training step of ViT-base at batch 128 in bf16, ours and PEFT's LoRA (`step_time.py`);
- compiled: the same, compiled by `torch.compile`;
- transforms: the Walsh–Hadamard transform by length and by block, and the whole fastfood projection (`fwht.py`);
- memory: what `superlora train --dry-run` estimates for a step, beside the most that the allocator held in training.

Each is printed as a table under the card's name, added to records/gpu.jsonl, a line each, and put on the page. ViT-base
has random weights and needs no network; the images of the memory's runs are the embedded digits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from operator import itemgetter

import pages
import torch
from recorded import Records
from speed import Benchmark, Found, steps
from timing import device_called, setting

RECORDS = Records("gpu.jsonl", itemgetter("benchmark"))
GIB = 2**30


def transforms(found: Found) -> str:
    """Milliseconds of every transform, by length."""
    lengths = found["bits"]
    columns = list(next(iter(lengths.values())))
    rows = [[f"2^{bits}", *(f"{runs[name]['ms']:.3g}" for name in columns)] for bits, runs in lengths.items()]
    return pages.table(["<length", *(f"{name}, ms" for name in columns)], rows)


OURS = "lora,lora-qkv,lokr,lorta3d,lorta3d-linear"
STEPS = ("step_time.py", "--device", "cuda", "--precision", "bf16", "--batch", "128", "--depth", "12", "--only", OURS)
BENCHMARKS = {
    "steps": Benchmark(STEPS, steps, threads=8),
    "compiled": Benchmark((*STEPS, "--compile"), steps, threads=8),
    "transforms": Benchmark(
        ("fwht.py", "--device", "cuda", "--bits", "16,18,20,22,24", "--blocks", "4,6,7,8"), transforms, threads=8
    ),
}

RECIPE = ("vit_cifar100_lora", "data.name=digits", "data.workers=8", "model.pretrained=false", "train.steps=5")
RECIPE += ("train.checkpoint_every=null", "eval.every=null")
ADAPTERS = {
    "lora": "{method: lora, targets: [q, v], rank: 8}",
    "lokr": "{method: lokr, targets: [q, v], rank: 8}",
    "lorta3d": "{method: lorta, targets: [q, v], order: 3, rank: 4}",
    "lorta3d-linear": "{method: lorta, targets: [q, v], order: 3, rank: 4, projection: linear, ratio: 0.1}",
}


def memory() -> Found:
    """Bytes of a step by adapter: estimated, and held at most in five steps of training."""
    found: Found = {}
    for name, knobs in ADAPTERS.items():
        command = [sys.executable, "-m", "superlora_cli", "train", *RECIPE, f"adapter={knobs}", "--json"]
        with tempfile.TemporaryDirectory() as folder:
            dry, done = (
                json.loads(subprocess.run([*command, *more], check=True, stdout=subprocess.PIPE).stdout)
                for more in (["--dry-run"], ["--out", f"{folder}/run"])
            )
        found[name] = {"estimated": dry["memory"]["total"], "held": done["peak_memory"]}
    return found


def estimates(found: Found) -> str:
    """Estimated and held memory, by adapter."""
    rows = []
    for name, of in found.items():
        estimated, held = of["estimated"], of["held"]
        rows.append([f"`{name}`", f"{estimated / GIB:.2f}", f"{held / GIB:.2f}", f"{held / estimated:.3f}"])
    return pages.table(["<adapter", "estimated, GiB", "held, GiB", "held ÷ estimated"], rows)


def shown(name: str, found: Found) -> str:
    """The table of a benchmark."""
    return BENCHMARKS[name].shown(found) if name in BENCHMARKS else estimates(found)


def places() -> pages.Places:
    """The newest figures of each benchmark, for the page."""
    return {(pages.DOCS / "benchmarks.md", f"gpu {name}"): f"{row['setting']}\n\n{shown(name, row['found'])}"
            for name, row in RECORDS.known().items()}  # fmt: skip


def main() -> None:
    """Measure, print, record."""
    names = [*BENCHMARKS, "memory"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here")
    card = setting(device_called("cuda"))
    for name in asked.only:
        found = BENCHMARKS[name].run() if name in BENCHMARKS else memory()
        print(f"{name}: {card}\n\n{shown(name, found)}\n", flush=True)
        RECORDS.add({"benchmark": name, "setting": card, "found": found})
    pages.fill(places())


if __name__ == "__main__":
    main()
