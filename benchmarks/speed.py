"""Runs the speed benchmarks one after another, and updates the pages that quote their results.

    python benchmarks/speed.py                          # all, half an hour; take a machine that does nothing else
    python benchmarks/speed.py --only merging startup
    python benchmarks/speed.py --fill                   # the pages again, from what is on record

Each is one of the scripts beside this one with `--json`; what it printed is kept in records/speed.jsonl, a line
each. docs/benchmarks.md, docs/training.md and README.md are made from that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pages
from recorded import Records
from timing import CHUNK, Spread, Times, ratio

RECORDS = Records("speed.jsonl", itemgetter("benchmark"))
PAGE, README, TRAINING = pages.DOCS / "benchmarks.md", pages.ROOT / "README.md", pages.DOCS / "training.md"
MIB, MB = 2**20, 1e6
Found = dict[str, Any]  # what a script printed with --json


class Benchmark(NamedTuple):
    """A command, and how a page shows its result."""

    words: tuple[str, ...]
    shown: Callable[[Found], str]
    threads: int = 2

    @property
    def command(self) -> str:
        """The command line."""
        quoted = [f"'{word}'" if " " in word else word for word in self.words]
        threads = f"OMP_NUM_THREADS={self.threads} " if self.threads != 2 else ""
        return f"{threads}python benchmarks/{' '.join(quoted)}"

    def run(self) -> Found:
        """Measure.

        Raises:
            subprocess.CalledProcessError: the script failed; it has said why.
        """
        script, *words = self.words
        command = [sys.executable, str(Path(__file__).with_name(script)), *words, "--json"]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        found: Found = json.loads(done.stdout)
        return found


def between(found: dict[str, float], digits: int = 2) -> str:
    """A median with its quartiles."""
    return f"{found['median']:.{digits}f} ({found['low']:.{digits}f}–{found['high']:.{digits}f})"


def steps(found: Found) -> str:
    """Every variant's step, in ratios; then ours against PEFT's, round by round."""
    rows = []
    for name, row in found["variants"].items():
        frozen, peer = row["of_frozen"], row["of_peft_lora"]
        cells = [f"`{name}`", row["path"], f"{row['trained']:,}", f"{found['asked']['batch'] / row['ms'] * 1e3:.1f}"]
        cells += [f"{frozen['median']:.3f}", f"{frozen['low']:.3f}–{frozen['high']:.3f}", f"{peer['median']:.3f}"]
        rows.append([*cells, f"{row['held_bytes'] / MIB:,.1f}", f"{row['peak_bytes'] / MIB:,.1f}"])
    columns = ("<variant", "<path", "trained", "images/s", "× frozen", "<quartiles", "× PEFT LoRA", "held, MiB")
    measured = [goal for goal in found["criteria"] if goal["found"]]
    said = "\n".join(f"- {goal['text']}: {between(goal['found'], 3)}, {goal['verdict']}" for goal in measured)
    return pages.table([*columns, "peak, MiB"], rows) + f"\n\nThe goals, by ratios within a round:\n\n{said}"


def projection(found: Found) -> str:
    """F alone, ours and plain."""
    times: Times = found["projection"]["times"]
    rows = []
    for part, of in found["projection"]["ratios"].items():
        ms = [f"{Spread.of(times[f'{who}, {part}']).median * 1e3:,.0f}" for who in ("ours", "plain")]
        rows.append([part, *ms, between(of, 3)])
    share = found["projection"]["share_of_estimated_step"]
    told = f"That is an estimated {share * 100:.1f} % of a step of 12 blocks at batch 128 on this machine."
    return pages.table(["<", "ours, ms", "plain, ms", "ratio"], rows) + f"\n\n{told}"


def transforms(found: Found) -> str:
    """The Walsh–Hadamard transform, by length."""
    rows = []
    for bits, runs in found["bits"].items():
        butterfly, ours = runs["butterfly"], runs["ours"]
        ms = [f"{run['ms']:,.3g}" for run in (butterfly, ours)]
        rows.append([f"2^{bits}", *ms, f"{ours['butterfly_over_it']:.1f}", f"{ours['of_clone']:.1f}"])
    return pages.table(["<length", "butterfly, ms", "ours, ms", "butterfly ÷ ours", "ours ÷ clone"], rows)


def startup(found: Found) -> str:
    """Processes against Python with typer and rich."""
    times: Times = found["seconds"]
    rows = [
        [f"`{name}`", f"{Spread.of(seconds).median:.2f}", between(vars(ratio(times, name, found["baseline"])))]
        for name, seconds in times.items()
        if name != found["baseline"]
    ]
    return pages.table(["<", "seconds", f"÷ `python -c '{found['baseline']}'`"], rows)


def merging(found: Found) -> str:
    """Copying, merging, PEFT; and the goals."""
    runs = found["runs"]
    seconds = {kind: [run["seconds"] for run in own] for kind, own in runs.items()}
    rows = []
    for kind, own in runs.items():
        medians = [Spread.of([run[key] for run in own]).median for key in ("seconds", "process", "cpu")]
        memory = f"{Spread.of([run['rise'] / MB for run in own]).median:,.0f}" if "rise" in own[0] else ""
        over = between(vars(ratio(seconds, kind, "cp")))
        rows.append([f"`{kind}`", *(f"{median:.2f}" for median in medians), over, memory])
    size = f"{found['bytes'] / 1e9:.2f} GB, {found['elements'] / 1e6:.0f} M elements, {found['params']:,} parameters:"
    columns = ["<", "seconds", "whole process, s", "CPU seconds", "÷ `cp` and `sync`", "MB above idle"]
    return f"{size}\n\n{pages.table(columns, rows)}"


def loop(found: Found) -> str:
    """The engine's step against loops by hand."""
    ready, loader = (between(goal["found"]) for goal in found["criteria"])
    return (
        "A step of the quickstart inside the engine against the same step in a loop written by hand on images that\n"
        f"lie ready in memory, on 2 CPU cores: {ready} times the time; against one that reads them with a plain\n"
        f"`DataLoader`, {loader} times."
    )


def pipelines(found: Found) -> str:
    """Ours against diffusers and PEFT, by images in a step."""
    rows = []
    for batch, times in found["seconds"].items():
        ours, plain = (f"{Spread.of(seconds).median / CHUNK * 1e3:.1f}" for seconds in times.values())
        rows.append([batch, ours, plain, between(found["criteria"][batch]["found"], 3)])
    return pages.table(["images a step", "ours, ms", "diffusers and PEFT, ms", "ratio"], rows)


LINEAR = '{"order": 3, "rank": 4, "groups": 12, "projection": "linear", "ratio": 0.1}'
BENCHMARKS = {
    "steps": Benchmark(("step_time.py", "--threads", "2", "--repeats", "9"), steps),
    "depth 12": Benchmark(
        ("step_time.py", "--threads", "2", "--depth", "12", "--repeats", "5", "--only",
         "lora,regular2d,lorta3d,regular2d-linear"), steps,
    ),
    "projection": Benchmark(
        ("step_time.py", "--threads", "2", "--projection", "--only", "frozen", "--repeats", "5"), projection
    ),
    "transforms": Benchmark(
        ("fwht.py", "--threads", "2", "--bits", "16,20,22,24", "--blocks", "5", "--repeats", "5"), transforms
    ),
    "startup": Benchmark(("startup.py",), startup),
    "loop": Benchmark(("engine.py", "--threads", "2"), loop),
    "pipelines": Benchmark(("text_to_image_step.py", "--threads", "1", "--steps", "400"), pipelines, threads=1),
    "merging": Benchmark(("merge.py", "--rounds", "5"), merging),
    "merging, one thread": Benchmark(("merge.py", "--rounds", "5"), merging, threads=1),
    "merging, projected": Benchmark(("merge.py", "--rounds", "1", "--knobs", LINEAR), merging),
}  # fmt: skip

PAIRS = (("lora", "LoRA"), ("lokr", "LoKr"))  # ours, PEFT's


def summary(known: dict[str, Found]) -> str:
    """README's sentence on speed."""
    found = known["steps"]
    goals = {goal["text"]: goal["found"]["median"] for goal in found["criteria"] if goal["found"]}
    lora, lokr = (goals[f"{name} on qkv ≤ 1.00 × PEFT {peer} on qkv"] for name, peer in PAIRS)
    plain = [of for text, of in goals.items() if text.startswith("materialised")]
    fastfood = known["projection"]["projection"]["ratios"]["forward and backward"]["median"]
    return (
        f"One training step of a ViT as wide as ViT-base: `lora` takes {lora:.2f} times PEFT's LoRA on the same\n"
        f"weights, `lokr` {lokr:.2f} times PEFT's LoKr, and updates that are built whole (LoRTA, 2D, LoNKr, LoHa)\n"
        f"{min(plain):.2f} to {max(plain):.2f} times the frozen backbone. The fastfood projection takes\n"
        f"{fastfood:.2f} times the time of the same formula written plainly."
    )


def places() -> pages.Places:
    """The generated parts of the pages."""
    known = {name: row["found"] for name, row in RECORDS.known().items()}
    filled: pages.Places = {}
    for name, benchmark in BENCHMARKS.items():
        if name in known:
            page = TRAINING if name == "loop" else PAGE
            filled[page, name] = f"`{benchmark.command}`\n\n{benchmark.shown(known[name])}"
    if {"steps", "projection"} <= set(known):
        filled[README, "fast"] = summary(known)
    return filled


def main() -> None:
    """Measure, record, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--fill", action="store_true", help="fill the pages, and measure nothing")
    asked = parser.parse_args()
    for name in () if asked.fill else asked.only:
        benchmark = BENCHMARKS[name]
        print(benchmark.command, flush=True)
        found = benchmark.run()
        RECORDS.replace(name, [{"benchmark": name, "command": benchmark.command, "found": found}], BENCHMARKS)
        print(benchmark.shown(found), flush=True)
    pages.fill(places())


if __name__ == "__main__":
    main()
